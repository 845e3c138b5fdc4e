"""Classes from version to version: renamed, merged, vanished, back again."""

import shutil

import numpy as np
import pytest

from tests.sourcing import config_of, write_classes
from transfer.config import DatasetConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.shards import read_shard
from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError
from transfer.storage import open_store
from transfer.training.balance import class_weights


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
    np.testing.assert_array_equal(class_weights("balanced", after)[1:], class_weights("balanced", alone))
