"""Listings of an S3 service: names of all kinds, and services that list otherwise than S3."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from transfer.catalog import layout
from transfer.errors import StorageError
from transfer.storage import Log, open_store, sha256_hex
from transfer.storage.s3 import S3Store

CONTENTS = re.compile(rb"<Contents>.*?</Contents>", re.DOTALL)
TRUNCATED = re.compile(rb"<IsTruncated>\w+</IsTruncated>")


@pytest.fixture
def store(faulty_storage, fast_retry):
    return open_store(faulty_storage, retry=fast_retry)


@pytest.fixture
def listed_as(store, fault_proxy):
    """Three objects, whose listing goes through a function before it arrives."""
    for name in ("a", "b", "c"):
        store.put(name, b"content")

    def change(listing):
        fault_proxy.fail("changed body", times=50, change=listing, matches=lambda _, path: "list-type" in path)
        return store

    return change


def test_names_of_all_kinds_come_back_as_they_were_put_and_in_the_order_of_their_bytes(s3_storage):
    store = open_store(s3_storage)
    names = ["a b", "a+b", "a%2Fb", "a&b=c", "a?b#c", "a'\"<>\\b", "a:b", "a;b,c@d$e!f*", "~", "(1)", ".hidden"]
    # Two spellings of é, and names whose order differs between UTF-8 and UTF-16.
    names += ["e\u0301", "\u00e9", "日本/猫.jpg", "\uff5e", "\U0001f408", "x" * 200 + "/" + "y" * 200]
    for name in names:
        assert store.put(name, name.encode()) is True
    assert [item.name for item in store.list()] == sorted(names)
    for name in names:
        assert store.read(name) == name.encode()
        assert [item.name for item in store.list(name)] == [name]


def test_what_consoles_make_of_folders_is_not_listed(s3_storage):
    store = open_store(s3_storage)
    store.put("folder/object", b"content")
    client = boto3.Session().client("s3", endpoint_url=s3_storage.endpoint_url)
    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    for key in (f"{prefix}/", f"{prefix}/folder/"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    client.close()
    assert [item.name for item in store.list()] == ["folder/object"]


def test_a_listing_without_an_order_is_refused(listed_as):
    def turned_round(listing):
        found = iter(reversed(CONTENTS.findall(listing)))
        return CONTENTS.sub(lambda _: next(found), listing)

    store = listed_as(turned_round)
    with pytest.raises(StorageError, match="'some/prefix/b' comes after 'some/prefix/c'"):
        list(store.list())


def test_a_listing_whose_pages_repeat_is_refused_and_does_not_go_on_for_ever(listed_as, s3_storage):
    client = boto3.Session().client("s3", endpoint_url=s3_storage.endpoint_url)
    token = client.list_objects_v2(Bucket=s3_storage.uri.split("/")[2], MaxKeys=1)["NextContinuationToken"]
    client.close()
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>".encode()
    store = listed_as(lambda listing: TRUNCATED.sub(more, listing))
    with pytest.raises(StorageError, match="'some/prefix/b' comes after 'some/prefix/c'"):
        list(store.list())


def test_a_page_that_does_not_say_where_the_next_one_begins_is_refused(listed_as):
    store = listed_as(lambda listing: TRUNCATED.sub(b"<IsTruncated>true</IsTruncated>", listing))
    with pytest.raises(StorageError, match="where they begin"):
        list(store.list())


PAGE_SIZE = 10


@pytest.fixture
def small_pages(faulty_storage):
    """A store whose listings have pages of ten keys, behind the proxy that counts requests."""
    bucket, _, prefix = faulty_storage.uri.removeprefix("s3://").partition("/")
    return S3Store(bucket, prefix, endpoint_url=faulty_storage.endpoint_url, page_size=PAGE_SIZE)


def put_all(store, names):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.put(name, b"content"), names))


def in_turn(store, prefix=""):
    """The names as one page after the other lists them."""
    listing = store._listing
    pages = listing._pages(listing.bucket.key(prefix))
    return [item for page in pages for item in listing._objects_of(page)]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([f"{label}/{row:03}.jpg" for label in "abcdefgh" for row in range(12)], id="classes"),
        pytest.param(
            [f"{split}/{label}/{row}.jpg" for split in ("test", "train") for label in range(9) for row in range(6)],
            id="splits of classes",
        ),
        pytest.param([f"{label:03}/only.jpg" for label in range(90)], id="many small folders"),
        pytest.param([f"{row:03}.jpg" for row in range(35)], id="no folders"),
        pytest.param([f"features/{sha256_hex(b'%d' % row)}.json" for row in range(60)], id="digests"),
        pytest.param(
            [f"a/{row}" for row in range(25)] + [f"a!{row}" for row in range(9)] + [f"b{row}" for row in range(9)]
            # Keys that sort between a folder and what is in it, a folder within a folder, and the highest letters.
            + [f"b/c/d/{row}" for row in range(15)] + ["a", "b", "日本/猫", "\U0001f408/cat", "z"],
            id="mixed",
        ),
    ],
)  # fmt: skip
def test_a_listing_in_ranges_is_the_listing_in_turn(small_pages, names):
    put_all(small_pages, names)
    listed = list(small_pages.list())
    assert [item.name for item in listed] == sorted(names)
    assert [(item, item.stamp) for item in listed] == [(item, item.stamp) for item in in_turn(small_pages)]


def test_a_listing_in_ranges_asks_for_little_more_and_in_few_rounds(small_pages, fault_proxy):
    put_all(small_pages, [f"{label}/{row:03}.jpg" for label in "abcdefgh" for row in range(40)])
    fault_proxy.requests.clear()
    assert len(list(small_pages.list())) == 320
    # One page in turn, one to find the classes, one to find no folders in each; then ranges, each a page too far.
    assert len(fault_proxy.requests) <= 2 + 8 + 320 // PAGE_SIZE + 2 * 9


def counted_newest(store, fault_proxy, log):
    fault_proxy.requests.clear()
    newest = Log(store, log).newest_number()
    return newest, len(fault_proxy.requests)


def test_the_newest_entry_of_a_long_log_is_found_by_few_requests(small_pages, fault_proxy):
    put_all(small_pages, [layout.entry("log", number) for number in range(1, 301)])
    newest, requests = counted_newest(small_pages, fault_proxy, "log")
    assert newest == 300
    assert requests <= 10, "in turn it takes 30"
    assert Log(small_pages, "log").append({}) == 301
    assert Log(small_pages, "log").latest() == (301, {})


@pytest.mark.parametrize(
    ("numbers", "others", "newest"),
    [
        pytest.param([], [], 0, id="empty"),
        pytest.param([], [f"log/{row}.txt" for row in range(25)], 0, id="no entry among others"),
        pytest.param([*range(1, 15), 700], [], 700, id="a gap"),
        pytest.param([500], [], 500, id="the earlier ones were removed"),
        pytest.param([*range(1, 30)], [f"log/{row:08}/{row}" for row in range(1, 60)], 29, id="folders between"),
        pytest.param([1, 2], [f"log/00000002/{file}" for file in range(35)], 2, id="a large folder behind"),
        pytest.param([3], [f"log/judged/{row}.json" for row in range(35)], 3, id="others behind"),
        pytest.param([*range(1, 12), 99_999_999, 100_000_000], [], 100_000_000, id="nine digits"),
        pytest.param([*range(1, 12), 100_000_000], [], 100_000_000, id="only one of nine digits"),
    ],
)  # fmt: skip
def test_the_newest_entry_is_found_whatever_is_beside_it(small_pages, numbers, others, newest):
    put_all(small_pages, [*(layout.entry("log", number) for number in numbers), *others])
    assert Log(small_pages, "log").newest_number() == newest
