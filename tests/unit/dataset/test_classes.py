"""Classes from version to version: renamed, merged, vanished, back again."""

import shutil

import numpy as np
import pytest

from tests.sourcing import config_of, read_ledger, write_classes
from transfer.config import DatasetConfig
from transfer.dataset import candidates as candidates_module
from transfer.dataset import ingest as ingest_module
from transfer.dataset.decisions import drop_class, is_pending, read_decided, restore_class, start_over
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import dataset_log, load_dataset
from transfer.dataset.shards import read_shard
from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError
from transfer.storage import open_store
from transfer.training.rows import class_weights


@pytest.fixture
def source(tmp_path):
    """10 images of each of three classes."""
    return write_classes(tmp_path / "images", ant=10, cat=10, dog=10)


def ingested(source, storage, **options):
    return ingest(config_of(source, storage, **options), open_store(storage))


def images_of(dataset, name):
    return sum(dataset.counts[split][name] for split in SPLITS)


def labels_of(dataset, storage):
    """Class index by the folder in which the image is."""
    store = open_store(storage)
    tables = [read_shard(store, shard, columns=["key", "label"]) for shard in dataset.shards]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["key"].split("/")[0]: row["label"] for row in rows}


def test_a_renamed_class_keeps_its_index_and_its_shards(source, folder_storage):
    first = ingested(source, folder_storage)
    second = ingested(source, folder_storage, rename_classes={"cat": "kitten"})
    assert (second.number, second.parent) == (2, 1)
    assert second.classes == ["ant", "kitten", "dog"]
    assert second.shards == first.shards
    assert images_of(second, "kitten") == 10
    assert ingested(source, folder_storage, rename_classes={"cat": "kitten"}) == second


def test_a_class_whose_folder_is_renamed_too_keeps_its_index_and_its_shards(source, folder_storage):
    first = ingested(source, folder_storage)
    (source / "cat").rename(source / "kitten")
    second = ingested(source, folder_storage, rename_classes={"cat": "kitten"})
    assert second.classes == ["ant", "kitten", "dog"]
    assert second.shards == first.shards


def test_two_labels_become_one_class_where_only_one_has_an_index(source, folder_storage):
    ingested(source, folder_storage)
    write_classes(source, first_seed=100, kitten=5)
    second = ingested(source, folder_storage, rename_classes={"kitten": "cat"})
    assert second.classes == ["ant", "cat", "dog"]
    assert images_of(second, "cat") == 15
    assert labels_of(second, folder_storage) == {"ant": 0, "cat": 1, "kitten": 1, "dog": 2}


def test_two_labels_become_one_class_that_is_new(source, folder_storage):
    dataset = ingested(source, folder_storage, rename_classes={"cat": "pet", "dog": "pet"})
    assert dataset.classes == ["ant", "pet"]
    assert images_of(dataset, "pet") == 20


def test_copies_under_two_labels_that_became_one_are_copies(source, folder_storage):
    shutil.copy(source / "cat" / "00010.png", source / "dog" / "copy.png")
    dataset = ingested(source, folder_storage, rename_classes={"cat": "pet", "dog": "pet"})
    assert dataset.reject_counts == {"duplicate": 1}


def test_two_classes_that_have_an_index_are_not_merged(source, folder_storage):
    ingested(source, folder_storage)
    with pytest.raises(DatasetError, match="makes `pet` of `cat` and of `dog`, and both have an index"):
        ingested(source, folder_storage, rename_classes={"cat": "pet", "dog": "pet"})
    with pytest.raises(DatasetError, match="makes `dog` of `cat` and of `dog`"):
        ingested(source, folder_storage, rename_classes={"cat": "dog"})


@pytest.mark.parametrize(
    "renames", [{"a": "b", "b": "c"}, {"a": "b", "b": "a"}, {"a": "a"}, {"caf\u00e9": "cafe\u0301"}]
)
def test_a_name_that_is_both_old_and_new_is_refused(renames):
    with pytest.raises(ValueError, match="as an old and as a new name"):
        DatasetConfig(source="digits", rename_classes=renames)


def test_an_empty_new_name_is_refused():
    with pytest.raises(ValueError, match="empty new name"):
        DatasetConfig(source="digits", rename_classes={"a": " "})


def test_a_vanished_class_keeps_its_index_and_is_named(source, folder_storage, caplog):
    first = ingested(source, folder_storage, shard_size_bytes=1)
    shutil.rmtree(source / "ant")
    second = ingested(source, folder_storage, shard_size_bytes=1)
    assert second.classes == ["ant", "cat", "dog"]
    assert images_of(second, "ant") == 0
    assert set(second.shards) < set(first.shards)
    assert labels_of(second, folder_storage) == {"cat": 1, "dog": 2}
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Without images now, with their indices kept: `ant`."]


def test_a_class_that_is_only_held_out_is_named_for_no_model_will_answer_it(source, folder_storage, caplog):
    first = ingested(source, folder_storage)
    for shard in first.shards_of("train"):
        for key in read_shard(open_store(folder_storage), shard, columns=["key"])["key"].to_pylist():
            if key.startswith("dog/"):
                (source / key).unlink()
    second = ingested(source, folder_storage)
    assert second.untrained_classes == ["dog"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Without training images, so no model answers them: `dog`. All of their images are held out."]


def test_a_dropped_class_is_in_no_later_version_until_it_is_wanted_again(source, folder_storage):
    store = open_store(folder_storage)
    first = ingested(source, folder_storage)
    drop_class(store, "pets", "ant", reason="too rare")
    assert drop_class(store, "pets", "ant", reason="again").dropped[0].reason == "too rare"
    second = ingested(source, folder_storage)
    assert (second.number, second.parent, second.classes) == (2, 1, ["cat", "dog"])
    assert labels_of(second, folder_storage) == {"cat": 0, "dog": 1}
    assert second.reject_counts == {"dropped": 10}
    assert read_ledger(store, second.rejects)["detail"][0].as_py() == "class ant was dropped: too rare"
    assert not second.has_indices_of(first)
    assert load_dataset(store, "pets", 1) == first
    assert ingested(source, folder_storage) == second
    restored = restore_class(store, "pets", "ant", reason="enough by now")
    assert is_pending(store, "pets", restored)
    third = ingested(source, folder_storage)
    assert third.classes == ["cat", "dog", "ant"]
    assert labels_of(third, folder_storage) == {"cat": 0, "dog": 1, "ant": 2}
    assert third.has_indices_of(second)
    assert not is_pending(store, "pets", restored)


def test_a_class_without_images_can_be_dropped_and_last_shards_stay(source, folder_storage):
    first = ingested(source, folder_storage, shard_size_bytes=1)
    shutil.rmtree(source / "dog")
    drop_class(open_store(folder_storage), "pets", "dog", reason="its folder is gone")
    second = ingested(source, folder_storage, shard_size_bytes=1)
    assert second.classes == ["ant", "cat"]
    assert set(second.shards) < set(first.shards), "no index moved, so no shard is written anew"


def test_what_cannot_be_dropped_or_restored_is_refused(source, folder_storage):
    store = open_store(folder_storage)
    ingested(source, folder_storage)
    with pytest.raises(DatasetError, match="has no class `bee`"):
        drop_class(store, "pets", "bee", reason="so")
    drop_class(store, "pets", "ant", reason="so")
    with pytest.raises(DatasetError, match="only the class `dog`"):
        drop_class(store, "pets", "cat", reason="so")
    with pytest.raises(DatasetError, match="`dog` of dataset `pets` is not dropped"):
        restore_class(store, "pets", "dog", reason="so")


def test_a_dataset_that_starts_over_has_indices_from_scratch_once(source, folder_storage):
    store = open_store(folder_storage)
    ingested(source, folder_storage)
    shutil.rmtree(source / "ant")
    write_classes(source, first_seed=100, bee=5)
    vanished = ingested(source, folder_storage)
    assert vanished.classes == ["ant", "cat", "dog", "bee"]
    start_over(store, "pets", reason="ants are history")
    fresh = ingested(source, folder_storage)
    assert (fresh.number, fresh.parent, fresh.classes) == (3, None, ["bee", "cat", "dog"])
    assert labels_of(fresh, folder_storage) == {"bee": 0, "cat": 1, "dog": 2}
    assert not fresh.has_indices_of(vanished)
    assert ingested(source, folder_storage) == fresh, "once, and not at every ingest"
    write_classes(source, first_seed=200, ape=5)
    assert ingested(source, folder_storage).classes == ["bee", "cat", "dog", "ape"]


@pytest.mark.parametrize(("module", "moment"), [(candidates_module, "check_batch"), (ingest_module, "build_shard")])
def test_what_is_decided_during_an_ingest_holds_for_its_version(source, folder_storage, monkeypatch, module, moment):
    store = open_store(folder_storage)
    ingested(source, folder_storage)
    write_classes(source, first_seed=100, bee=5)
    real = getattr(module, moment)

    def decide_and_go_on(task, **options):
        monkeypatch.setattr(module, moment, real)
        drop_class(store, "pets", "ant", reason="too rare")
        start_over(store, "pets", reason="a new camera")
        return real(task, **options)

    monkeypatch.setattr(module, moment, decide_and_go_on)
    dataset = ingested(source, folder_storage)
    assert (dataset.number, dataset.parent, dataset.classes) == (2, None, ["bee", "cat", "dog"])


def test_a_start_over_that_an_ingest_did_not_see_is_left_to_the_next_one(source, folder_storage, monkeypatch):
    store = open_store(folder_storage)
    ingested(source, folder_storage)
    write_classes(source, first_seed=100, bee=5)

    def log_after_a_decision(*arguments):
        monkeypatch.undo()
        decided = start_over(store, "pets", reason="a new camera")
        assert decided.starts_over_after == 1
        return dataset_log(*arguments)

    monkeypatch.setattr(ingest_module, "dataset_log", log_after_a_decision)
    assert ingested(source, folder_storage).classes == ["ant", "cat", "dog", "bee"]
    assert is_pending(store, "pets", read_decided(store, "pets"))
    assert ingested(source, folder_storage).classes == ["ant", "bee", "cat", "dog"]
    assert not is_pending(store, "pets", read_decided(store, "pets"))


def test_a_vanished_class_that_comes_back_has_its_index_again(source, folder_storage):
    ingested(source, folder_storage)
    shutil.move(source / "ant", source.parent / "aside")
    ingested(source, folder_storage)
    write_classes(source, first_seed=100, bee=5)
    shutil.move(source.parent / "aside", source / "ant")
    third = ingested(source, folder_storage)
    assert third.classes == ["ant", "cat", "dog", "bee"]
    assert labels_of(third, folder_storage) == {"ant": 0, "cat": 1, "dog": 2, "bee": 3}


def test_the_weights_of_the_others_are_those_that_they_would_have_alone(source, folder_storage, tmp_path):
    ingested(source, folder_storage)
    shutil.rmtree(source / "ant")
    elsewhere = folder_storage.model_copy(update={"uri": str(tmp_path / "elsewhere")})
    after, alone = ingested(source, folder_storage), ingested(source, elsewhere)
    assert alone.classes == ["cat", "dog"]
    weights, expected = (class_weights("balanced", open_store(folder_storage), each, None) for each in (after, alone))
    np.testing.assert_array_equal(weights[1:], expected)


def test_images_of_no_class_that_is_known_are_another_dataset(source, folder_storage, tmp_path):
    first = ingested(source, folder_storage)
    other = write_classes(tmp_path / "other", rose=10, tulip=10)
    with pytest.raises(
        DatasetError, match=r"3 classes so far \(`ant`, `cat`, `dog`\), and none of them is in"
    ) as refused:
        ingested(other, folder_storage)
    assert "set `name` to a new name" in refused.value.advice
    assert load_dataset(open_store(folder_storage), first.name) == first
    start_over(open_store(folder_storage), first.name, reason="flowers now")
    assert ingested(other, folder_storage).classes == ["rose", "tulip"]
