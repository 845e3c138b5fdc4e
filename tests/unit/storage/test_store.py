from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transfer.errors import AlreadyExistsError, CorruptObjectError, ObjectNotFoundError, StorageError
from transfer.storage import StoredObject, open_store, put_content, sha256_hex, sha256_of_file

HELLO = b"hello, store\n"


def test_what_is_put_is_read_back_whole_and_in_ranges(store):
    assert store.put("some/object.bin", HELLO) is True
    assert store.read("some/object.bin") == HELLO
    assert store.read("some/object.bin", start=7) == HELLO[7:]
    assert store.read("some/object.bin", start=7, length=5) == b"store"
    assert store.read("some/object.bin", start=0, length=5) == b"hello"
    assert store.read("some/object.bin", start=7, length=500) == HELLO[7:]
    assert store.read("some/object.bin", length=0) == b""
    assert store.read("some/object.bin", start=len(HELLO)) == b""
    assert store.read("some/object.bin", start=len(HELLO) + 10, length=3) == b""
    assert store.size("some/object.bin") == len(HELLO)
    assert store.exists("some/object.bin")


@pytest.mark.parametrize("size", [0, 13, 9 * 1024**2])
def test_an_object_is_copied_to_a_file(store, tmp_path, size):
    data = (HELLO * (size // len(HELLO) + 1))[:size]
    store.put("object", data)
    store.download("object", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_an_object_that_ends_before_its_size_is_not_taken_for_whole(store, tmp_path):
    store.put("object", HELLO)
    with pytest.raises(StorageError, match="changed while it was read"):
        store.download("object", tmp_path / "copy", size_bytes=len(HELLO) + 1)


def test_a_negative_range_is_a_bug_and_not_a_read_from_the_end(store):
    store.put("object", HELLO)
    with pytest.raises(ValueError, match="start"):
        store.read("object", start=-3)
    with pytest.raises(ValueError, match="length"):
        store.read("object", length=-1)


def test_an_empty_object_is_an_object(store):
    store.put("empty", b"")
    assert store.exists("empty")
    assert store.size("empty") == 0
    assert store.read("empty") == b""
    assert store.read("empty", start=0, length=10) == b""
    with store.open("empty") as file:
        assert file.read() == b""


def test_a_file_is_put_like_bytes(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(HELLO)
    assert store.put("object", path) is True
    assert store.put("object", path) is False
    assert store.put("object", HELLO) is False
    assert store.read("object") == HELLO
    path.write_bytes(HELLO.upper())
    with pytest.raises(AlreadyExistsError, match="object"):
        store.put("object", path)


def test_the_same_bytes_again_are_no_error_and_other_bytes_never_replace_them(store):
    assert store.put("object", HELLO) is True
    assert store.put("object", HELLO) is False
    for other in (b"", HELLO[:-1], HELLO + b"!", HELLO.upper()):
        with pytest.raises(AlreadyExistsError, match="object"):
            store.put("object", other)
    assert store.read("object") == HELLO


@pytest.mark.parametrize("size", [2, 1000])
def test_of_twenty_writers_of_one_name_exactly_one_wins(store, size):
    start = threading.Barrier(20)

    def write(number):
        start.wait()
        try:
            return store.put("contested", f"{number:02}".encode() * (size // 2))
        except AlreadyExistsError:
            return False

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(write, range(20)))
    assert won.count(True) == 1
    assert store.read("contested") == f"{won.index(True):02}".encode() * (size // 2)


def test_of_twenty_writers_of_the_same_bytes_all_succeed_and_one_created_them(store):
    start = threading.Barrier(20)

    def write(_):
        start.wait()
        return store.put("contested", HELLO)

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(write, range(20))).count(True) == 1


def test_what_is_not_there_is_said_to_be_missing(store):
    assert not store.exists("missing")
    for ask in (
        store.read,
        store.size,
        store.open,
        lambda name: store.read(name, start=3),
        lambda name: store.read(name, length=0),
        lambda name: store.read_verified(name, sha256_hex(b"")),
        lambda name: store.open_verified(name, sha256_hex(b"")),
    ):
        with pytest.raises(ObjectNotFoundError, match="missing"):
            ask("missing")
    store.put("folder/object", HELLO)
    for ask in (store.read, store.size, store.open):
        with pytest.raises(ObjectNotFoundError):
            ask("folder")


def test_a_listing_is_sorted_recursive_and_limited_to_a_prefix(store):
    names = ["a/b", "a-b", "a/b-c/d", "a.b", "b", "a/c", "ä/ö", "z"]
    for name in names:
        store.put(name, name.encode())
    assert list(store.list()) == [StoredObject(name, len(name.encode())) for name in sorted(names)]
    assert all(abs(item.modified_s - time.time()) < 3600 for item in store.list())
    assert [item.name for item in store.list("a/")] == ["a/b", "a/b-c/d", "a/c"]
    assert [item.name for item in store.list("a/b")] == ["a/b", "a/b-c/d"]
    assert [item.name for item in store.list("a")] == sorted(name for name in names if name.startswith("a"))
    assert list(store.list("nothing/")) == []


def test_folders_are_those_directly_in_a_folder(store):
    for name in ["a/b", "a/c/d", "a/c/e", "a-b/c", "ä/ö/x", "b", "a/d/e/f"]:
        store.put(name, b"x")
    assert list(store.folders()) == ["a-b", "a", "ä"]
    assert list(store.folders("a")) == ["c", "d"]
    assert list(store.folders("a/c")) == list(store.folders("nothing")) == []


def test_a_listing_of_a_store_that_was_never_written_is_empty(store):
    assert list(store.list()) == []


def test_an_arrow_file_is_read_where_it_lies(store):
    table = pa.table({"number": list(range(200_000)), "text": [str(number) for number in range(200_000)]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    store.put("table.arrow", sink.getvalue().to_pybytes())
    with store.open("table.arrow") as file:
        reader = pa.ipc.open_file(file)
        assert reader.get_batch(7).equals(table.slice(70_000, 10_000).to_batches()[0])
        assert reader.read_all().equals(table)


def test_a_parquet_file_is_read_by_column_and_row_group(store):
    table = pa.table({"number": list(range(100_000)), "text": [str(number) for number in range(100_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10_000)
    store.put("table.parquet", sink.getvalue().to_pybytes())
    with store.open("table.parquet") as file:
        parquet = pq.ParquetFile(file)
        assert parquet.read_row_group(3, columns=["text"]).equals(table.select(["text"]).slice(30_000, 10_000))
        assert parquet.read().equals(table)


def test_an_open_object_can_be_read_at_any_place(store):
    content = bytes(range(256)) * 4096
    store.put("object", content)
    with store.open("object") as file:
        assert file.size() == len(content)
        for start, length in [(0, 1), (1_000_000, 100_000), (5, 700_000), (len(content) - 8, 8), (300_000, 10)]:
            file.seek(start)
            assert file.read(length) == content[start : start + length]
            assert file.tell() == min(start + length, len(content))
        file.seek(-5, 2)
        assert file.read() == content[-5:]
        assert file.read() == b""


@pytest.mark.parametrize(
    "name",
    ["", "/absolute", "../escape", "a/../../escape", "a/..", "a//b", "a/", "./a", "a/./b", "a\x00b", "a\nb"],
)
def test_names_that_leave_the_store_are_refused_everywhere(store, name):
    for ask in (
        store.read,
        store.size,
        store.exists,
        store.open,
        lambda name: store.put(name, HELLO),
        lambda name: store.create(name, HELLO),
        lambda name: store.read_verified(name, sha256_hex(HELLO)),
        lambda name: store.open_verified(name, sha256_hex(HELLO)),
        store.remove,
    ):
        with pytest.raises(StorageError, match="not an object's name"):
            ask(name)


def test_a_prefix_that_leaves_the_store_is_refused(store):
    for prefix in ("../", "/", "a/../../"):
        with pytest.raises(StorageError, match="not an object's name"):
            list(store.list(prefix))


def test_names_of_files_that_are_being_written_are_refused(store):
    with pytest.raises(StorageError, match="reserved"):
        store.put("a/.transfer-tmp-1", HELLO)


def test_only_what_a_probe_wrote_can_be_discarded(store):
    store.put("object", HELLO)
    for name in ("object", ".probe/../object"):
        with pytest.raises((ValueError, StorageError)):
            store.discard(name)
    assert store.read("object") == HELLO


def test_reading_with_the_wrong_digest_names_the_object_and_both_digests(store):
    store.put("object", HELLO)
    assert store.read_verified("object", sha256_hex(HELLO)) == HELLO
    with pytest.raises(CorruptObjectError) as caught:
        store.read_verified("object", sha256_hex(b"other"))
    for part in ("object", sha256_hex(HELLO), sha256_hex(b"other")):
        assert part in str(caught.value)


def test_a_verified_file_can_be_read_at_any_place(store):
    content = bytes(range(256)) * 4096
    store.put("object", content)
    store.put("empty", b"")
    with store.open_verified("object", sha256_hex(content)) as file:
        assert file.size() == len(content)
        file.seek(1_000_000)
        assert file.read(5) == content[1_000_000:1_000_005]
        file.seek(0)
        assert file.read() == content
    with store.open_verified("empty", sha256_hex(b"")) as file:
        assert file.read() == b""


def test_opening_with_the_wrong_digest_names_the_object_and_both_digests(store):
    store.put("object", HELLO)
    with pytest.raises(CorruptObjectError) as caught:
        store.open_verified("object", sha256_hex(b"other"))
    for part in ("object", sha256_hex(HELLO), sha256_hex(b"other")):
        assert part in str(caught.value)


def test_what_can_be_computed_again_is_removed_and_can_be_put_anew(store):
    store.put("features/a/object", HELLO)
    store.put("features/a/other", HELLO)
    store.remove("features/a/object")
    store.remove("features/a/object")
    store.remove("features/b/never/there")
    assert [item.name for item in store.list()] == ["features/a/other"]
    assert store.put("features/a/object", HELLO.upper()) is True


def test_a_model_version_is_removed_with_its_folders_and_nothing_beside_it(storage):
    store = open_store(storage)
    versions = "models/flowers/versions"
    of_first = [f"{versions}/00000001.json", *(f"{versions}/00000001/{name}" for name in ("a/b/object", "a/c", "d"))]
    others = [f"{versions}/00000002/d", "models/flowers/versions.txt"]
    for name in (*of_first, *others):
        store.put(name, HELLO)
    for name in of_first:
        store.remove(name)
    assert [item.name for item in store.list()] == sorted(others)
    if not storage.uri.startswith("s3:"):
        assert [path.name for path in Path(storage.uri, versions).iterdir()] == ["00000002"]
    store.remove(f"{versions}/00000002/d")
    assert store.put(f"{versions}/00000003/d", HELLO) is True


def test_a_run_is_removed_with_its_folder_and_nothing_beside_it(storage):
    store = open_store(storage)
    of_first = ["runs/a/arrays/b.npz", "runs/a/checkpoints/00000001.json", "runs/a/run.json"]
    for name in (*of_first, "runs/b/run.json", "sweeps/s/packs/p/checkpoints/00000001.json"):
        store.put(name, HELLO)
    for name in (*of_first, "sweeps/s/packs/p/checkpoints/00000001.json"):
        store.remove(name)
    assert [item.name for item in store.list()] == ["runs/b/run.json"]
    if not storage.uri.startswith("s3:"):
        assert [path.name for path in Path(storage.uri, "runs").iterdir()] == ["b"]


def test_what_is_removed_while_it_is_listed_does_not_disturb_the_rest_of_the_list(folder_storage, monkeypatch):
    store = open_store(folder_storage)
    for name in ("a", "b", "c"):
        store.put(f"features/{name}", HELLO)
    walk = os.walk

    def walk_while_another_removes(folder):
        for directory, folders, files in walk(folder):
            if "b" in files:
                store.remove("features/b")
            yield directory, folders, files

    monkeypatch.setattr(os, "walk", walk_while_another_removes)
    assert [item.name for item in store.list()] == ["features/a", "features/c"]


@pytest.mark.parametrize(
    "name",
    [
        *("shards/object", "features", "features-of-mine/object", "features/../shards/object", "probe"),
        *("models/flowers/promotions/00000001.json", "models/flowers/retention/00000001.json"),
        *("models/flowers/versions/00000001", "models/flowers/versions/notes/object"),
        *("models/flowers/serving/00000001", "models/flowers/serving/notes/object"),
        *("models/flowers/versions/../promotions/00000001.json", "models/a/b/versions/00000001.json"),
        "datasets/models/flowers/versions/00000001.json",
        *("runs/notes", "sweeps/s/sweep.json", "sweeps/s/trials/00000001/00000001.json", "sweeps/s/packs/p/notes"),
    ],
)
def test_nothing_else_can_be_removed(store, name):
    there = ["shards/object"]
    if name.startswith(("models/", "datasets/", "runs/", "sweeps/")) and ".." not in name:
        there.append(name)
    for each in there:
        store.put(each, HELLO)
    with pytest.raises((ValueError, StorageError)):
        store.remove(name)
    assert sorted(item.name for item in store.list()) == sorted(there)


def test_a_file_of_the_users_is_replaced_and_nothing_in_a_folder(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(HELLO.upper())
    for data, expected in ((HELLO, HELLO), (path, HELLO.upper())):
        store.replace("answers.csv", data)
        assert store.read("answers.csv") == expected
    store.put("shards/object", HELLO)
    with pytest.raises(ValueError, match="in a folder"):
        store.replace("shards/object", path)
    assert store.read("shards/object") == HELLO
    assert [item.name for item in store.list()] == ["answers.csv", "shards/object"]


def test_what_was_read_stays_valid_when_the_object_is_removed(store):
    content = bytes(range(256)) * 4096
    store.put("features/object", content)
    with store.open_verified("features/object", sha256_hex(content)) as file:
        data = file.read_buffer()
    store.remove("features/object")
    assert data.to_pybytes() == content


def test_content_is_named_by_its_digest_and_put_once(store, tmp_path):
    path = tmp_path / "shard"
    path.write_bytes(HELLO)
    digest, named = sha256_hex(HELLO), "shards/{}.parquet".format
    assert put_content(store, named, HELLO) == (f"shards/{digest}.parquet", digest)
    assert put_content(store, named, path) == (f"shards/{digest}.parquet", digest)
    assert sha256_of_file(path) == digest
    assert [item.name for item in store.list()] == [f"shards/{digest}.parquet"]


def test_a_store_says_where_it_is_and_is_not_pickled(store, storage):
    assert store.uri in repr(store)
    with pytest.raises(TypeError, match="StorageConfig"):
        pickle.dumps(store)
    again = open_store(pickle.loads(pickle.dumps(storage)))  # noqa: S301 - our own bytes
    store.put("object", HELLO)
    assert again.read("object") == HELLO
