"""The files of a base by their content: nothing of it is opened by what could understand it."""

import os
import time

import pytest

from transfer.backbone import identity
from transfer.backbone.identity import base_digests
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError
from transfer.storage import open_store

FILES = {
    "saved_model.pb": b"graph",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights",
    "assets/vocabulary.txt": b"words",
}


def module_in(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def files_of(model="MobileNetV2", storage=None, **changes):
    return base_digests(BaseNetworkConfig(model=str(model), **changes), storage=storage)


@pytest.mark.parametrize(
    ("key", "name"),
    [("model", "base.keras"), ("model", "module.tar.gz"), ("weights", "w.weights.h5"), ("weights", "w.h5")],
)
def test_another_byte_of_a_file_is_another_file(tmp_path, key, name):
    path = tmp_path / name
    path.write_bytes(b"one")
    before = files_of(**{key: str(path)})
    assert list(before) == [key]
    assert files_of(**{key: str(path)}) == before
    path.write_bytes(b"two")
    assert files_of(**{key: str(path)}) != before


@pytest.mark.parametrize("place", [".", "inner"])
def test_any_file_of_a_saved_model_is_a_part_of_it_and_so_is_its_name(tmp_path, place):
    folder = tmp_path / "module"
    module_in(folder / place)
    found = [files_of(folder)]
    for name in FILES:
        (folder / place / name).write_bytes(b"other")
        found.append(files_of(folder))
    (folder / place / "assets/vocabulary.txt").rename(folder / place / "assets/words.txt")
    found.append(files_of(folder))
    (folder / place / "assets/more.txt").write_bytes(b"")
    found.append(files_of(folder))
    assert len({each["model"] for each in found}) == len(found) == 7


def test_the_same_files_elsewhere_and_in_a_bucket_are_the_same(tmp_path, s3_storage):
    folder, store = module_in(tmp_path / "module"), open_store(s3_storage)
    for name in FILES:
        store.put(f"module/{name}", folder / name)
    store.put("base.keras", b"one")
    store.put("base.keras.old", b"two")
    (tmp_path / "base.keras").write_bytes(b"one")
    for name in ("module", "base.keras"):
        in_bucket = files_of(f"{s3_storage.uri}/{name}", s3_storage)
        assert in_bucket == files_of(f"{s3_storage.uri}/{name}", s3_storage) == files_of(tmp_path / name)
    assert files_of(f"{s3_storage.uri}/bas.keras", s3_storage) == files_of(f"{s3_storage.uri}/modul", s3_storage) == {}


def test_an_object_that_was_replaced_is_another(s3_storage, tmp_path):
    import boto3

    bucket, _, prefix = s3_storage.uri.removeprefix("s3://").partition("/")
    client, found = boto3.client("s3", endpoint_url=s3_storage.endpoint_url), []
    for content in (b"one", b"two"):
        client.put_object(Bucket=bucket, Key=f"{prefix}/w.weights.h5", Body=content)
        found.append(files_of(weights=f"{s3_storage.uri}/w.weights.h5", storage=s3_storage))
    client.close()
    assert found[0] != found[1]


def test_what_is_no_file_has_no_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ResNet50" / "cats").mkdir(parents=True)
    assert files_of("ResNet50") == files_of("ResNet50", weights="none") == {}
    assert files_of("https://tfhub.dev/google/some/1") == files_of("missing.keras") == {}


def test_what_is_remembered_of_a_file_is_never_that_of_another(tmp_path, monkeypatch):
    read, sha256_of_file = [], identity.sha256_of_file
    monkeypatch.setattr(identity, "sha256_of_file", lambda path: (read.append(path), sha256_of_file(path))[1])
    path, other = tmp_path / "base.keras", tmp_path / "other.keras"
    path.write_bytes(b"one")
    other.write_bytes(b"two")
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    before = files_of(path)
    # It was written just now, and could be again without another time: it is read each time.
    assert (files_of(path), len(read)) == (before, 2)
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10 * 10**9)
    assert (files_of(path), files_of(path), len(read)) == (before, before, 3)
    # The same size and the same time, in its place and within it.
    os.utime(other, ns=times)
    other.rename(path)
    assert files_of(path) != before
    path.write_bytes(b"one")
    os.utime(path, ns=times)
    assert files_of(path) == before


def test_a_folder_that_is_far_too_large_is_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.backbone.files.MAX_MODULE_FILES", 3)
    with pytest.raises(BackboneError, match="module holds more than 3 files"):
        files_of(module_in(tmp_path / "module"))
