"""An S3 service that fails, behind a proxy that makes it fail."""

from __future__ import annotations

import logging
import os
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from transfer.config import StorageConfig
from transfer.errors import AlreadyExistsError, CorruptObjectError, StorageError
from transfer.storage import Log, RetryPolicy, open_store, probe, put_document, read_document, sha256_hex

HELLO = b"hello, store\n" * 100


@pytest.fixture
def store(faulty_storage, fast_retry):
    return open_store(faulty_storage, retry=fast_retry)


def writes(method, _path):
    return method in {"PUT", "POST"}


def bodies(method, path):
    return method == "GET" and "list-type" not in path


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (502, "BadGateway"),
        (504, "GatewayTimeout"),
        (429, "TooManyRequests"),
        (409, "ConditionalRequestConflict"),
    ],
)
def test_a_storm_of_passing_errors_is_ridden_out(store, fault_proxy, status, code):
    for ask, expected in [
        (lambda: store.put("object", HELLO), True),
        (lambda: store.read("object"), HELLO),
        (lambda: store.read("object", start=3, length=5), HELLO[3:8]),
        (lambda: store.size("object"), len(HELLO)),
        (lambda: [item.name for item in store.list()], ["object"]),
    ]:
        fault_proxy.fail("status", times=5, status=status, code=code)
        assert ask() == expected


@pytest.mark.parametrize("code", ["RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"])
def test_a_body_that_did_not_arrive_whole_is_sent_again(store, fault_proxy, code):
    fault_proxy.fail("status", times=3, status=400, code=code)
    assert store.put("object", HELLO) is True
    assert store.read("object") == HELLO


@pytest.mark.parametrize("manner", ["reset", "lost response"])
def test_cut_connections_are_ridden_out(store, fault_proxy, manner):
    fault_proxy.fail(manner, times=3)
    assert store.put("object", HELLO) is True
    fault_proxy.fail(manner, times=3)
    assert store.read("object") == HELLO
    fault_proxy.fail(manner, times=3)
    assert [item.name for item in store.list()] == ["object"]


def test_a_service_that_stays_away_is_given_up_naming_object_place_and_cause(store, fault_proxy, fast_retry):
    fault_proxy.fail("status", times=1000, status=503, code="SlowDown")
    with pytest.raises(StorageError) as caught:
        store.read("some/object")
    for part in ("some/object", store.uri, fault_proxy.url, "SlowDown", "503", f"{fast_retry.attempts} attempts"):
        assert part in str(caught.value)
    assert len(fault_proxy.requests) == fast_retry.attempts


def test_no_attempt_begins_after_the_total_time(faulty_storage, fault_proxy):
    impatient = RetryPolicy(attempts=1000, first_wait_s=0.01, longest_wait_s=0.02, total_s=0.2)
    fault_proxy.fail("status", times=10_000)
    with pytest.raises(StorageError):
        open_store(faulty_storage, retry=impatient).read("object")
    assert 1 < len(fault_proxy.requests) < 1000


def test_a_service_that_is_not_there_is_named(s3_storage, fast_retry):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(StorageError, match=url):
            open_store(s3_storage.model_copy(update={"endpoint_url": url}), retry=fast_retry).read("object")


@pytest.mark.parametrize("existing", ["nothing", "the same", "other"])
def test_a_write_whose_answer_was_lost_succeeds_unless_other_content_was_there(store, fault_proxy, existing):
    if existing != "nothing":
        store.put("object", HELLO if existing == "the same" else b"other")
    fault_proxy.fail("lost response", matches=writes)
    if existing == "other":
        with pytest.raises(AlreadyExistsError, match="object"):
            store.put("object", HELLO)
    else:
        store.put("object", HELLO)
        assert store.read("object") == HELLO


def test_a_log_entry_whose_answer_was_lost_is_added_once(store, fault_proxy):
    log = Log(store, "versions")
    fault_proxy.fail("lost response", matches=writes)
    assert log.append({"version": 1}) == 1
    assert log.numbers() == [1]


def test_equal_content_of_another_program_is_recognised_without_a_digest_beside_it(store, faulty_storage, s3_server):
    bucket = store.uri.split("/")[2]
    client = boto3.Session().client("s3", endpoint_url=s3_server)
    client.put_object(Bucket=bucket, Key="some/prefix/object", Body=HELLO, Metadata={"sha256": "something else"})
    client.close()
    assert store.read("object") == HELLO
    assert store.put("object", HELLO) is False
    with pytest.raises(AlreadyExistsError):
        store.put("object", HELLO.upper())


@pytest.mark.parametrize("manner", ["short body", "cut body"])
def test_a_short_body_is_noticed_and_read_again(store, fault_proxy, manner):
    store.put("object", HELLO)
    for ask, expected in [
        (lambda: store.read("object"), HELLO),
        (lambda: store.read("object", start=100, length=1000), HELLO[100:1100]),
        (lambda: store.read("object", start=100), HELLO[100:]),
        (lambda: store.read_verified("object", sha256_hex(HELLO)), HELLO),
        (lambda: store.open("object").read(), HELLO),
        (lambda: [item.name for item in store.list()], ["object"]),
    ]:
        fault_proxy.fail(manner, matches=lambda method, _: method == "GET")
        assert ask() == expected


@pytest.mark.parametrize("manner", ["short body", "cut body"])
def test_a_body_that_stays_short_is_an_error_and_never_data(store, fault_proxy, manner):
    store.put("object", HELLO)
    fault_proxy.fail(manner, times=1000, matches=bodies)
    for ask in (store.read, lambda name: store.read(name, start=1), lambda name: store.open(name).read()):
        with pytest.raises(StorageError, match="object"):
            ask("object")


def test_a_changed_body_is_noticed_by_its_digest_and_read_again(store, fault_proxy):
    store.put("object", HELLO)
    put_document(store, "document.json", {"a": 1})
    for ask, expected in [
        (lambda: store.read("object"), HELLO),
        (lambda: store.read_verified("object", sha256_hex(HELLO)), HELLO),
        (lambda: read_document(store, "document.json"), {"a": 1}),
    ]:
        fault_proxy.fail("flipped byte", matches=bodies)
        assert ask() == expected


def test_a_byte_changed_on_its_way_to_the_service_is_refused_there_and_sent_again(store, fault_proxy):
    fault_proxy.fail("flipped upload", times=3, matches=writes)
    assert store.put("object", HELLO) is True
    assert store.read("object") == HELLO
    assert sum(writes(*request) for request in fault_proxy.requests) == 4


def test_a_body_that_stays_changed_is_refused(store, fault_proxy):
    store.put("object", HELLO)
    put_document(store, "document.json", {"a": 1})
    fault_proxy.fail("flipped byte", times=1000, matches=bodies)
    with pytest.raises(CorruptObjectError, match="object"):
        store.read("object")
    with pytest.raises(CorruptObjectError, match="object"):
        store.read_verified("object", sha256_hex(HELLO))
    with pytest.raises(CorruptObjectError, match=r"document\.json"):
        read_document(store, "document.json")


def test_long_listings_come_in_pages_and_survive_faults(store, s3_storage, fault_proxy):
    direct = open_store(s3_storage)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: direct.put(f"many/{number:05}", b""), range(1005)))
    fault_proxy.fail("status", times=2)
    assert [item.name for item in store.list("many/")] == [f"many/{number:05}" for number in range(1005)]


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "AccessDenied", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (404, "NoSuchBucket", "Create the bucket"),
        (400, "AuthorizationHeaderMalformed", "region"),
        (400, "KeyTooLongError", "1,024 bytes"),
        (400, "InvalidObjectName", "1,024 bytes"),
    ],
)
def test_what_waiting_does_not_mend_is_said_at_once_with_advice(store, fault_proxy, status, code, advice):
    fault_proxy.fail("status", times=1000, status=status, code=code)
    with pytest.raises(StorageError, match=code) as caught:
        probe(store, single_writer=False)
    assert advice in caught.value.advice
    assert [method for method, _ in fault_proxy.requests if method != "DELETE"] == ["PUT"]


def test_a_missing_bucket_is_not_a_missing_object(s3_server, fast_retry):
    store = open_store(StorageConfig(uri="s3://no-such-bucket", endpoint_url=s3_server), retry=fast_retry)
    for ask in (lambda: store.read("object"), lambda: list(store.list()), lambda: store.put("object", HELLO)):
        with pytest.raises(StorageError, match="NoSuchBucket"):
            ask()


def test_missing_credentials_are_said_at_once_with_advice(s3_storage, fast_retry, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        open_store(s3_storage, retry=fast_retry).put("object", HELLO)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(StorageError, match="AWS_PROFILE"):
        open_store(s3_storage, retry=fast_retry)


def test_credentials_show_up_nowhere(store, faulty_storage, fault_proxy, caplog):
    caplog.set_level(logging.INFO)
    access_key, secret_key = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    fault_proxy.fail("status", times=2)
    store.put("object", HELLO)
    texts = [repr(store), str(vars(store)), repr(faulty_storage), pickle.dumps(faulty_storage).decode("latin1")]
    for status, code in [(403, f"{access_key} is unknown"), (503, "SlowDown")]:
        fault_proxy.fail("status", times=8, status=status, code=code if status == 503 else "InvalidAccessKeyId")
        with pytest.raises(StorageError) as caught:
            store.read("object")
        texts += [str(caught.value), repr(caught.value), pickle.dumps(caught.value).decode("latin1")]
        fault_proxy.heal()
    texts += [record.getMessage() for record in caplog.records]
    assert any("trying again" in text for text in texts)
    for text in texts:
        assert access_key not in text
        assert secret_key not in text


def test_bodies_are_sent_plainly_with_a_digest_in_the_signature(store, fault_proxy):
    store.put("object", HELLO)
    headers = {name.lower(): value for name, value in fault_proxy.headers[-1].items()}
    assert headers["if-none-match"] == "*"
    assert headers["x-amz-content-sha256"] == sha256_hex(HELLO)
    assert headers["x-amz-meta-sha256"] == sha256_hex(HELLO)
    assert int(headers["content-length"]) == len(HELLO)
    assert not any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in headers)
