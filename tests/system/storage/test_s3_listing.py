"""Listings of an S3 service: names of all kinds, and services that list otherwise than S3."""

from __future__ import annotations

import re

import boto3
import pytest

from transfer.errors import StorageError
from transfer.storage import open_store

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
