"""Small classes: no split lacks them that they have images for, and no image changes its split from night to night."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.published import provenance_of
from tests.sourcing import config_of, write_classes
from transfer.catalog.model import ModelVersion
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import Shard, dataset_log
from transfer.dataset.shards import Images, RecordedShard, read_columns
from transfer.dataset.small_classes import place_images
from transfer.dataset.splits import SPLITS, split_indices
from transfer.registry.describe import NeverTrainedOn
from transfer.storage import open_store

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}


def digest_of(number):
    return hashlib.sha256(f"{number}".encode()).hexdigest()


def words_of(numbers):
    return np.array([[int(digest_of(n)[at : at + 16], 16) for at in range(0, 64, 16)] for n in numbers], np.uint64)


def images_of(labels):
    """Images as ingest has them: `labels` are the class index of each, by the number that gives its digest."""
    numbers = sorted(labels, key=digest_of)
    words = words_of(numbers).reshape(-1, 4)
    none = np.zeros(len(numbers), np.int64)
    splits = split_indices(words[:, 0], validation=SHARES["validation"], test=SHARES["test"])
    of_each = np.array([labels[number] for number in numbers], np.int32)
    return numbers, Images(none, words, of_each, splits, none.astype(np.uint64), none, none, none)


def night(labels, before, placed):
    """The split of each image by its number, and what was placed; `before` is that of the night before."""
    numbers, images = images_of(labels)
    shard = Shard(name="", sha256="", split="train", rows=0, size_bytes=0)
    recorded = [RecordedShard(shard, words_of(sorted(before)), np.zeros(0), np.zeros(0))] if before else []
    drawn = np.ones(len(numbers), bool)
    splits, placed = place_images(images, drawn, shares=SHARES, placed=placed, recorded=recorded)
    by_content = {number: SPLITS[split] for number, split in zip(numbers, images.splits, strict=True)}
    return {number: SPLITS[split] for number, split in zip(numbers, splits, strict=True)}, placed, by_content


def splits_of_class(found, labels, label):
    return {found[number] for number in found if labels[number] == label}


# The class of each image follows from its number; some images come on a night, some leave.
NIGHTS = st.lists(st.sets(st.integers(0, 40), min_size=1), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(NIGHTS)
def test_an_image_stays_in_its_split_and_a_new_class_has_all_that_it_has_images_for(nights):
    before, placed = {}, {}
    for numbers in nights:
        labels = {number: number % 4 for number in numbers}
        now, then_placed, by_content = night(labels, before, placed)
        assert all(now[number] == before[number] for number in now if number in before)
        assert all(now[number] == then_placed.get(digest_of(number), by_content[number]) for number in now)
        assert night(labels, now, then_placed)[:2] == (now, then_placed)
        assert placed.items() <= then_placed.items()
        for label in set(labels.values()):
            of_class = [number for number in labels if labels[number] == label]
            if before.keys().isdisjoint(of_class) and not {digest_of(number) for number in of_class} & placed.keys():
                wanted = {"train"} if len(of_class) < 4 else set(SPLITS)
                assert wanted <= splits_of_class(now, labels, label)
        before, placed = now, then_placed


def test_a_class_that_grows_gets_its_missing_splits_from_new_images_alone():
    in_train = [number for number in range(200) if images_of({number: 0})[1].splits[0] == 0]
    first, placed, _ = night(dict.fromkeys(in_train[:3], 0), {}, {})
    assert (set(first.values()), placed) == ({"train"}, {})  # 15 % of 3 images are less than half a one.
    for count, split in ((4, "test"), (5, "validation"), (6, "train")):
        now, placed, _ = night(dict.fromkeys(in_train[:count], 0), first, placed)
        assert now == {**first, in_train[count - 1]: split}
        first = now
    # Its class would lack a test image again without it; when it comes back, it is where it was.
    left = dict.fromkeys([number for number in in_train[:6] if number != in_train[3]], 0)
    without, placed, _ = night(left, first, placed)
    assert "test" not in without.values()
    assert night(dict.fromkeys(in_train[:6], 0), without, placed)[0] == first


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_class_with_images_in_held_out_splits_only_gets_one_for_training(count):
    held_out = [number for number in range(200) if images_of({number: 0})[1].splits[0] == 2]
    found, _, _ = night(dict.fromkeys(held_out[:count], 0), {}, {})
    assert sorted(found.values()) == ["test"] * (count - 1) + ["train"]


def test_given_test_images_do_not_count_towards_whether_validation_is_due():
    shares = {"train": 0.85, "validation": 0.15, "test": 0.0}
    # 15 % of 3 images are less than half a one; of 4 images they are more.
    for in_train, placed_count in ((3, 0), (4, 1)):
        _, images = images_of(dict.fromkeys(range(in_train + 5), 0))
        images.splits[:] = [SPLITS.index("train")] * in_train + [SPLITS.index("test")] * 5
        drawn = images.splits == SPLITS.index("train")
        splits, placed = place_images(images, drawn, shares=shares, placed={}, recorded=[])
        assert list(placed.values()) == ["validation"] * placed_count
        assert (splits[~drawn] == SPLITS.index("test")).all()


def splits_by_digest(store, dataset):
    return {
        digest: shard.split
        for shard in dataset.shards
        for digest in read_columns(store, shard, ["sha256"])["sha256"].to_pylist()
    }


def test_a_version_records_what_was_placed_and_a_model_of_it_is_compared_by_that(tmp_path, folder_storage):
    # That each of so many has all splits by chance is out of the question.
    source = write_classes(tmp_path / "source", ant=4, bee=4, cat=4, dog=4, eel=4, fox=4, gnu=4)
    config = config_of(source, folder_storage, validation=0.15, test=0.15)
    store = open_store(config.storage)
    first = ingest(config, store)
    assert all(first.counts[split][name] for split in SPLITS for name in first.classes)
    assert first.splitting is not None
    placed = first.splitting.placed
    before = splits_by_digest(store, first)
    assert placed
    assert placed.items() <= before.items()
    assert f"({len(placed)} image" in first.splitting.title
    assert ingest(config, store) == first

    write_classes(source, first_seed=100, eel=12)
    second = ingest(config, store)
    after = splits_by_digest(store, second)
    assert before.items() <= after.items()
    # A version of a model that was trained on the first one: of each image it is known what it was for that model.
    version = ModelVersion.model_construct(provenance=provenance_of("run", first.reference))
    held_out = [digest for digest, split in after.items() if split == "test"]
    unseen = NeverTrainedOn(store, version, second, "test").of(held_out)
    assert [before.get(digest, "new") in {"test", "new"} for digest in held_out] == unseen.tolist()
    assert set(held_out) & placed.keys() <= {d for d, kept in zip(held_out, unseen, strict=True) if kept}


def test_a_version_without_placed_images_reads_as_in_earlier_releases(tmp_path, folder_storage):
    source = write_classes(tmp_path / "source", cat=60, dog=60)
    config = config_of(source, folder_storage, validation=0.15, test=0.15)
    store = open_store(config.storage)
    ingest(config, store)
    assert "splitting" not in dataset_log(store, config.dataset_name).read(1)


def test_images_in_groups_are_not_placed(tmp_path, folder_storage):
    source = write_classes(tmp_path / "source", cat=30, dog=30, eel=4)
    config = config_of(source, folder_storage, validation=0.15, test=0.15, group_pattern="[^/]+$")
    dataset = ingest(config, open_store(config.storage))
    assert dataset.splitting is not None
    assert dataset.splitting.placed == {}
