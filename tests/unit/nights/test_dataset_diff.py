"""Which images are new and which are gone between two versions."""

import pytest

from tests.unit.nights.versions_of import dataset_of, images
from transfer.nights.dataset_diff import compare, data_change
from transfer.storage import open_store

CAT, DOG, EEL = 0, 1, 2


@pytest.fixture
def store(folder_storage):
    return open_store(folder_storage)


def by_class(change):
    return {each.name: (each.before, each.new, each.gone) for each in change.classes}


OLD = ("train", images(CAT, 1, 2, 3) + images(DOG, 4, 5))
HELD_OUT = ("test", images(CAT, 6) + images(DOG, 7))


def test_without_a_version_before_every_image_is_new(store):
    now = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT], rejects={"unreadable": 2, "duplicate": 5, "ignored": 1})
    change = data_change(store, None, now, renames={})
    assert change.before is None
    assert change.now == "pets/00000001"
    assert (change.images, change.new, change.gone, change.shards, change.new_shards) == (7, 7, 0, 2, 2)
    assert change.rejected == 2, "copies and files that are no images are no rejects"
    assert by_class(change) == {"cat": (0, 4, 0), "dog": (0, 3, 0)}


def test_the_same_images_in_other_shards_are_neither_new_nor_gone(store):
    before = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT])
    split_up = [("train", OLD[1][:2]), ("validation", OLD[1][2:]), HELD_OUT]
    change = data_change(store, before, dataset_of(store, ["cat", "dog"], split_up, number=2), renames={})
    assert (change.new, change.gone, change.new_shards) == (0, 0, 2)
    assert by_class(change) == {"cat": (4, 0, 0), "dog": (3, 0, 0)}


def test_new_and_gone_images_are_counted_by_class(store):
    before = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT])
    rewritten = ("train", images(CAT, 1, 2) + images(DOG, 4, 5, 8))
    added = ("train", images(EEL, 9, 10))
    now = dataset_of(store, ["cat", "dog", "eel"], [HELD_OUT, rewritten, added], number=2)
    change = data_change(store, before, now, renames={})
    assert change.before == "pets/00000001"
    assert (change.images, change.new, change.gone, change.shards, change.new_shards) == (9, 3, 1, 3, 2)
    assert by_class(change) == {"cat": (4, 0, 1), "dog": (3, 1, 0), "eel": (0, 2, 0)}


def test_a_class_that_was_dropped_has_neither_vanished_nor_lost_images(store):
    before = dataset_of(store, ["cat", "dog", "eel"], [OLD, ("train", images(EEL, 9, 10))])
    moved = ("train", images(0, 4, 5) + images(1, 9, 10, 11))
    now = dataset_of(store, ["dog", "eel"], [moved], number=2).model_copy(update={"indices_from": 2})
    change = data_change(store, before, now, renames={})
    assert by_class(change) == {"dog": (2, 0, 0), "eel": (2, 1, 0)}
    assert (change.new, change.gone) == (1, 0)


def test_an_image_with_another_class_is_new_and_gone(store):
    before = dataset_of(store, ["cat", "dog"], [OLD])
    now = dataset_of(store, ["cat", "dog"], [("train", images(CAT, 1, 2) + images(DOG, 3, 4, 5))], number=2)
    change = data_change(store, before, now, renames={})
    assert by_class(change) == {"cat": (3, 0, 1), "dog": (2, 1, 0)}


def test_a_class_with_another_name_is_the_same_class_in_the_same_dataset(store):
    before = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT])
    added = ("train", images(DOG, 8))
    now = dataset_of(store, ["cat", "hound"], [OLD, HELD_OUT, added], number=2)
    change = data_change(store, before, now, renames={})
    assert by_class(change) == {"cat": (4, 0, 0), "hound": (3, 1, 0)}


def test_in_another_dataset_names_decide_which_class_it_is(store):
    before = dataset_of(store, ["cat", "dog"], [OLD])
    # Dogs and eels, in this order: dogs have index 0 here, and there are no cats.
    other = dataset_of(store, ["dog", "eel"], [("train", images(0, 4, 5) + images(1, 9))], name="others")
    change = data_change(store, before, other, renames={})
    assert by_class(change) == {"dog": (2, 0, 0), "eel": (0, 1, 0), "cat": (3, 0, 3)}


def test_where_names_decide_a_renamed_class_is_the_same_class(store):
    before = dataset_of(store, ["cat", "dog", "puppy"], [OLD, ("train", images(2, 8))])
    moved = ("train", images(0, 4, 5, 8, 9) + images(1, 1, 2, 3))
    now = dataset_of(store, ["hound", "cat"], [moved], number=2).model_copy(update={"indices_from": 2})
    change = data_change(store, before, now, renames={"dog": "hound", "puppy": "hound"})
    assert by_class(change) == {"hound": (3, 1, 0), "cat": (3, 0, 0)}


def test_the_new_rows_of_each_new_shard_are_told(store):
    before = dataset_of(store, ["cat", "dog"], [OLD])
    rewritten = ("train", images(CAT, 1, 2, 3) + images(DOG, 4, 8))
    now = dataset_of(store, ["cat", "dog"], [rewritten, HELD_OUT], number=2)
    first, second = compare(store, before, now, renames={}).new
    assert (first.shard, second.shard) == tuple(now.shards)
    # The only new one among cats and dogs that were there.
    assert first.labels[first.is_new].tolist() == [DOG]
    assert first.is_new.sum() == 1
    assert second.is_new.all()


def test_shards_that_both_have_are_not_read(store, monkeypatch):
    before = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT])
    now = dataset_of(store, ["cat", "dog"], [OLD, HELD_OUT, ("train", images(CAT, 8))], number=2)
    opened = []
    open_file = type(store).open
    monkeypatch.setattr(type(store), "open", lambda self, name: opened.append(name) or open_file(self, name))
    assert data_change(store, before, now, renames={}).new == 1
    assert opened == [now.shards[-1].name]
