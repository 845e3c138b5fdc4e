"""Versions and promotions, without TensorFlow: any folder of files will do."""

import threading
from pathlib import Path

import pytest

from tests.published import add_version, provenance_of
from transfer.errors import CorruptObjectError, PromotionConflictError, RegistryError
from transfer.registry.promote import promote
from transfer.registry.versions import (
    current_promotion,
    download_version,
    list_promotions,
    list_versions,
    load_version,
)
from transfer.storage import open_store


@pytest.fixture
def store(storage):
    return open_store(storage)


@pytest.fixture
def exported(tmp_path):
    return write_model(tmp_path / "exported", b"graph")


def write_model(folder: Path, graph: bytes) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(graph)
    (folder / "variables/variables.index").write_bytes(b"index")
    return folder


def add(store, exported, run="run"):
    return add_version(store, "flowers", exported, classes=["a", "b"], provenance=provenance_of(run))


def test_versions_are_numbered_and_read_back_whole(store, exported, tmp_path):
    first, second = add(store, exported, run="x"), add(store, exported, run="y")
    assert (first.number, second.number) == (1, 2)
    assert list(list_versions(store, "flowers")) == [first, second]
    assert load_version(store, "flowers", 2) == second
    folder = download_version(store, second, tmp_path / "copy")
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert (folder / "variables/variables.index").read_bytes() == b"index"


def test_tensorflow_serving_finds_numbered_folders_with_the_graph_last(store, exported):
    version = add(store, exported)
    assert version.folder == "models/flowers/versions/00000001"
    assert version.files[-1].name == "saved_model.pb"


def test_a_publisher_that_died_leaves_nothing_that_exists(store, exported):
    add(store, exported)
    store.put("models/flowers/versions/00000002/variables/variables.index", b"torn")
    assert [version.number for version in list_versions(store, "flowers")] == [1]
    with pytest.raises(RegistryError, match="has no version 2"):
        load_version(store, "flowers", 2)
    assert add(store, exported).number == 3


def test_publishers_at_once_each_get_a_version_of_their_own(store, tmp_path):
    versions, barrier = [], threading.Barrier(6)

    def publish(index):
        folder = write_model(tmp_path / str(index), f"graph {index}".encode())
        barrier.wait()
        versions.append((index, add(store, folder, run=str(index))))

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({version.number for _, version in versions}) == 6
    for index, version in versions:
        copy = download_version(store, version, tmp_path / f"copy-{index}")
        assert (copy / "saved_model.pb").read_bytes() == f"graph {index}".encode()


def test_a_wrong_byte_in_a_published_file_is_never_used(folder_storage, exported, tmp_path):
    store = open_store(folder_storage)
    version = add(store, exported)
    path = Path(folder_storage.uri.removeprefix("file://")) / version.folder / "saved_model.pb"
    path.chmod(0o644)
    path.write_bytes(b"graqh")
    with pytest.raises(CorruptObjectError):
        download_version(store, version, tmp_path / "copy")


def test_promotion_keeps_its_history_and_rolls_back(store, exported):
    first, second = add(store, exported), add(store, exported)
    assert current_promotion(store, "flowers") is None
    promote(store, first, reason="first")
    promote(store, second, reason="better")
    assert load_version(store, "flowers") == second
    back = promote(store, first, reason="rollback")
    assert load_version(store, "flowers") == first
    assert (back.version, back.replaces) == (1, 2)


def test_promoting_what_serves_changes_nothing(store, exported):
    version = add(store, exported)
    first = promote(store, version, reason="one")
    assert promote(store, version, reason="two") == first


def test_nothing_promoted_says_so(store):
    with pytest.raises(RegistryError, match="No version of model `flowers` is promoted"):
        load_version(store, "flowers")


@pytest.mark.parametrize(
    ("model", "found", "advice"),
    [
        ("flower", r"is promoted in .*: there is no such model\.", "Near that name are `flowers`."),
        ("dogs", r"is promoted in .*: there is no such model\.", "Among the models there are `flowers`."),
        ("flowers", r"is promoted in [^:]*\. It has", "It has version 1."),
    ],
)
def test_a_model_that_does_not_exist_is_told_from_one_that_waits(folder_storage, exported, model, found, advice):
    store = open_store(folder_storage)
    add(store, exported)
    with pytest.raises(RegistryError, match=found) as refused:
        load_version(store, model)
    assert advice in refused.value.advice


def test_a_storage_without_any_model_says_so(folder_storage):
    with pytest.raises(RegistryError, match="no model has a version there") as refused:
        load_version(open_store(folder_storage), "flowers")
    assert "Check the address of the storage" in refused.value.advice


def promoted_meanwhile(monkeypatch, version, *, reason):
    """Somebody promotes the version between the look of the next promotion at the log and its writing."""
    from transfer.registry import versions as module

    real = module.Log

    class LogSeenTooEarly(real):
        def latest(self):
            found = super().latest()
            monkeypatch.setattr(module, "Log", real)
            promote(self._store, version, reason=reason)
            return found

    monkeypatch.setattr(module, "Log", LogSeenTooEarly)


def test_two_promotions_at_once_one_wins_and_the_other_is_told(store, exported, monkeypatch):
    first, second = add(store, exported), add(store, exported)
    promoted_meanwhile(monkeypatch, second, reason="the other one")
    with pytest.raises(PromotionConflictError, match=r"version 2 was, at the same time, .* \(the other one\)"):
        promote(store, first, reason="this one")
    assert load_version(store, "flowers") == second


def test_two_promotions_of_one_version_at_once_are_one(store, exported, monkeypatch):
    first = add(store, exported)
    promoted_meanwhile(monkeypatch, first, reason="the one that came first")
    assert promote(store, first, reason="this one").reason == "the one that came first"
    assert len(list(list_promotions(store, "flowers"))) == 1
