from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from transfer.errors import AlreadyExistsError, StorageError
from transfer.storage import sha256_hex
from transfer.storage.s3 import S3Store

MIB = 1024**2
# S3 takes no smaller parts, except the last.
PART = 5 * MIB
LARGE = os.urandom(12 * MIB)


def open_large(storage, retry, **details):
    bucket, _, prefix = storage.uri.removeprefix("s3://").partition("/")
    return S3Store(
        bucket,
        prefix,
        endpoint_url=storage.endpoint_url,
        retry=retry,
        multipart_threshold_bytes=6 * MIB,
        part_size_bytes=PART,
        **details,
    )


@pytest.fixture
def honors_condition(s3_storage, fast_retry):
    """Whether the service decides between writers of objects in parts, too. Ceph's gateway 16 does not."""
    return open_large(s3_storage, fast_retry)._probe_parts()


@pytest.fixture
def store(faulty_storage, fast_retry, honors_condition):
    """A store that sends large objects in parts: where the service does not decide, for one writer only."""
    return open_large(faulty_storage, fast_retry, single_writer=not honors_condition)


@pytest.fixture
def unfinished(s3_storage):
    """Counts uploads that hold parts and were never completed or aborted."""
    client = boto3.Session().client("s3", endpoint_url=s3_storage.endpoint_url)
    bucket = s3_storage.uri.split("/")[2]
    yield lambda: len(client.list_multipart_uploads(Bucket=bucket).get("Uploads", []))
    client.close()


def completes(method, path):
    return method == "POST" and "uploadId" in path


def completes_object(method, path):
    return completes(method, path) and "large" in path


def parts(method, path):
    return method == "PUT" and "partNumber" in path


def parts_of_object(method, path):
    return parts(method, path) and "large" in path


def test_a_large_file_of_the_users_is_replaced(store, unfinished):
    for content in (LARGE, LARGE[::-1]):
        store.replace("answers.parquet", content)
        assert store.read("answers.parquet") == content
    assert unfinished() == 0


def test_large_bytes_and_files_are_sent_in_parts(store, fault_proxy, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    assert store.put("large-bytes", LARGE) is True
    assert store.put("large-file", path) is True
    assert sum(parts_of_object(*request) for request in fault_proxy.requests) == 6
    for name in ("large-bytes", "large-file"):
        assert store.read_verified(name, sha256_hex(LARGE)) == LARGE
        assert store.read(name) == LARGE
    assert [item.name for item in store.list()] == ["large-bytes", "large-file"]


def test_a_large_object_that_is_there_is_not_sent_again(store, fault_proxy):
    store.put("large", LARGE)
    fault_proxy.requests.clear()
    assert store.put("large", LARGE) is False
    with pytest.raises(AlreadyExistsError):
        store.put("large", LARGE[::-1])
    assert not any(parts(*request) for request in fault_proxy.requests)


def test_of_several_large_writers_of_one_name_exactly_one_wins(faulty_storage, fast_retry, unfinished):
    store = open_large(faulty_storage, fast_retry)
    start = threading.Barrier(4)

    def write(number):
        start.wait()
        try:
            return store.put("large", bytes([number]) * (7 * MIB))
        except AlreadyExistsError:
            return False

    with ThreadPoolExecutor(4) as pool:
        won = list(pool.map(write, range(4)))
    assert won.count(True) == 1
    assert store.read("large") == bytes([won.index(True)]) * (7 * MIB)
    assert unfinished() == 0


@pytest.mark.parametrize("manner", ["reset", "lost response", "status"])
def test_faults_of_single_parts_and_of_the_completion_are_ridden_out(store, fault_proxy, unfinished, manner):
    fault_proxy.fail(manner, times=2, matches=parts_of_object)
    fault_proxy.fail(manner, times=2, matches=completes_object)
    assert store.put("large", LARGE) is True
    assert store.read("large") == LARGE
    assert unfinished() == 0


def test_a_byte_of_a_part_changed_on_its_way_is_refused_and_the_part_sent_again(store, fault_proxy):
    fault_proxy.fail("flipped upload", times=2, matches=parts_of_object)
    assert store.put("large", LARGE) is True
    assert store.read("large") == LARGE


def test_a_completion_that_conflicts_with_another_is_sent_anew(store, fault_proxy, unfinished):
    fault_proxy.fail("status", status=409, code="ConditionalRequestConflict", matches=completes_object)
    assert store.put("large", LARGE) is True
    assert sum(parts_of_object(*request) for request in fault_proxy.requests) == 6
    assert store.read("large") == LARGE
    assert unfinished() == 0


def test_an_upload_that_is_gone_after_its_answer_was_lost_counts_as_done(store, fault_proxy):
    fault_proxy.fail("lost response", matches=completes_object)
    fault_proxy.fail("status", status=404, code="NoSuchUpload", matches=completes_object)
    assert store.put("large", LARGE) is True
    assert store.read("large") == LARGE


def test_an_upload_that_is_aborted_before_its_completion_is_an_error_and_no_object(store, fault_proxy, s3_storage):
    client = boto3.Session().client("s3", endpoint_url=s3_storage.endpoint_url)

    def abort(method, path):
        if completes_object(method, path):
            address = urlsplit(path)
            _, bucket, key = address.path.split("/", 2)
            upload = parse_qs(address.query)["uploadId"][0]
            with contextlib.suppress(client.exceptions.ClientError):  # It is gone at the second try.
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        return False

    fault_proxy.fail("status", matches=abort)
    with pytest.raises(StorageError, match="large"):
        store.put("large", LARGE)
    assert not store.exists("large")
    client.close()


def test_a_file_that_shrinks_while_it_is_sent_is_not_stored(store, fault_proxy, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(LARGE)

    def shrink(method, path_of_request):
        if method == "POST" and "large" in path_of_request and "uploads" in path_of_request:
            os.truncate(path, PART)
        return False

    fault_proxy.fail("status", matches=shrink)
    with pytest.raises(StorageError, match="changed while"):
        store.put("large", path)
    assert not store.exists("large")


def test_completions_that_always_conflict_end_in_an_error(store, fault_proxy):
    fault_proxy.fail("status", times=1000, status=409, code="ConditionalRequestConflict", matches=completes_object)
    with pytest.raises(StorageError, match="large"):
        store.put("large", LARGE)


def test_an_upload_that_fails_leaves_neither_object_nor_parts(store, fault_proxy, unfinished):
    fault_proxy.fail(
        "status", times=1000, matches=lambda method, path: parts_of_object(method, path) and "partNumber=3" in path
    )
    with pytest.raises(StorageError, match="part 3 of large"):
        store.put("large", LARGE)
    assert not store.exists("large")
    assert unfinished() == 0


@pytest.mark.parametrize("manner", ["no conditions", "status"])
def test_where_only_whole_objects_are_conditional_large_ones_are_sent_whole(
    faulty_storage, fast_retry, fault_proxy, manner
):
    store = open_large(faulty_storage, fast_retry)
    details = {"status": 501, "code": "NotImplemented"} if manner == "status" else {}
    fault_proxy.fail(manner, times=1_000_000, matches=completes, **details)
    assert store.put("large", LARGE) is True
    assert not any(parts_of_object(*request) for request in fault_proxy.requests)
    with pytest.raises(AlreadyExistsError):
        store.put("large", LARGE[::-1])
    assert store.read("large") == LARGE
    assert [item.name for item in store.list()] == ["large"]


@pytest.mark.parametrize("manner", ["no conditions", "status"])
def test_a_single_writer_sends_parts_whatever_the_service_honors(faulty_storage, fast_retry, fault_proxy, manner):
    def conditional(method, _path):
        return method != "GET" and any(name.lower() == "if-none-match" for name in fault_proxy.headers[-1])

    details = {"status": 501, "code": "NotImplemented"} if manner == "status" else {}
    fault_proxy.fail(manner, times=1_000_000, matches=conditional, **details)
    store = open_large(faulty_storage, fast_retry, single_writer=True)
    assert store.put("large", LARGE) is True
    assert sum(parts_of_object(*request) for request in fault_proxy.requests) == 3
    assert store.put("large", LARGE) is False
    with pytest.raises(AlreadyExistsError):
        store.put("large", LARGE[::-1])
    assert store.read("large") == LARGE
