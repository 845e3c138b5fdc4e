"""Groups: images of one patient, camera or burst are never in two splits."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.sourcing import image, write_classes, write_file
from tests.unit.dataset.test_splits_given import ingested, refusal, splits_of, table_of, warnings_in
from transfer.dataset.shards import read_columns
from transfer.dataset.splits import NONE_GIVEN, SPLITS, Given, decide_splits
from transfer.storage import open_store

PATTERN = r"/(p\d+)-"


def write_patients(folder, patients, *, first_seed=0, images=3):
    """So many images of each patient, in both classes."""
    for place, patient in enumerate(patients):
        for number in range(images):
            seed = first_seed + images * place + number
            write_file(folder / ("cat", "dog")[number % 2] / f"p{patient}-{seed}.png", image(seed))
    return folder


def sides_of(dataset, storage):
    """The splits that each patient's images are in."""
    sides = {}
    for key, split in splits_of(dataset, storage).items():
        sides.setdefault(key.split("/")[1].split("-")[0], set()).add(split)
    return sides


def test_no_group_is_in_two_splits_and_none_moves_when_images_are_added(tmp_path, folder_storage):
    source = write_patients(tmp_path / "images", range(12))
    options = {"group_pattern": PATTERN, "test": 0.2}
    before = sides_of(ingested(source, folder_storage, **options), folder_storage)
    write_patients(source, range(6, 20), first_seed=500)
    second = ingested(source, folder_storage, **options)
    after = sides_of(second, folder_storage)
    assert {len(splits) for splits in after.values()} == {1}
    assert before.items() <= after.items()
    assert set.union(*after.values()) == {*SPLITS}
    assert second.splitting.title == (rf"validation 30 %, test 20 % drawn by group (pattern `{PATTERN}`)")


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(-1, 4)), max_size=30),
    st.lists(st.integers(-1, 2), min_size=5, max_size=5),
    st.integers(0, 30),
)
def test_a_group_is_on_one_side_whatever_else_is_there(images, split_of_group, first):
    """Each image is decided alike with all others, and with those of the first night only."""
    heads = np.array([head for head, _ in images], np.uint64)
    groups = np.array([group for _, group in images], np.int32)
    splits = np.array([split_of_group[group] if group >= 0 else NONE_GIVEN for group in groups], np.int8)
    known = Given(splits, groups, [f"p{number}" for number in range(5)])
    both = {"validation": 0.3, "test": 0.0}
    decided = decide_splits(heads, known, **both)
    assert all(len(set(decided[groups == group])) <= 1 for group in range(5))
    held_out = splits > 0
    assert (decided[held_out] == splits[held_out]).all()
    assert (decide_splits(heads[:first], known.part(np.arange(len(heads))[:first]), **both) == decided[:first]).all()


def test_a_column_groups_the_rows_of_a_table_and_images_without_a_group_are_on_their_own(
    tmp_path, folder_storage, caplog
):
    source = write_patients(tmp_path / "images", range(9))
    paths = sorted(source.rglob("*.png"))
    rows = [f"{path.relative_to(source)},{path.parent.name},{path.stem.split('-')[0]}" for path in paths]
    rows[0] = rows[0].rpartition(",")[0] + ","
    table = table_of(source, rows, "path,label,patient")
    dataset = ingested(table, folder_storage, group_column="patient")
    sides = splits_of(dataset, folder_storage)
    for patient in range(1, 9):
        assert len({split for key, split in sides.items() if f"/p{patient}-" in key}) == 1
    first = paths[0].relative_to(source)
    said = f"1 of 27 images have no group (column `patient`) and are split on their own: {first}."
    assert said in warnings_in(caplog)


def test_an_image_without_a_split_follows_its_group(tmp_path, folder_storage):
    source = write_patients(tmp_path / "images", range(8), images=4)
    rows = [
        f"{path.relative_to(source)},{path.parent.name},{patient},{'test' if patient == 'p3' and number == 0 else ''}"
        for path in sorted(source.rglob("*.png"))
        for patient, number in [path.stem.split("-") for _ in [0]]
        for number in [int(number) % 4]
    ]
    table = table_of(source, rows, "path,label,patient,split")
    dataset = ingested(table, folder_storage, group_column="patient", split_column="split")
    assert dataset.rows("test") == 4
    assert all("/p3-" in key for key, split in splits_of(dataset, folder_storage).items() if split == "test")


def test_a_group_in_two_given_splits_is_refused(tmp_path, folder_storage):
    source = tmp_path / "images"
    write_patients(source / "train", [1, 2, 3])
    write_patients(source / "test", [3, 4], first_seed=50)
    message = refusal(source, folder_storage, group_pattern=PATTERN)
    assert "The group `p3` (pattern" in message
    assert re.search(r"test/\w+/p3-5\d\.png in test, train/cat/p3-6\.png in train\.$", message)


def test_a_pattern_that_is_found_nowhere_is_refused(tmp_path, folder_storage):
    source = write_patients(tmp_path / "images", range(3))
    message = refusal(source, folder_storage, group_pattern=r"patient(\d+)")
    assert "is found in no key; the first one is cat/p0-0.png" in message


def test_a_split_that_no_group_falls_into_is_refused_with_the_reason(tmp_path, folder_storage):
    source = write_patients(tmp_path / "images", range(2), images=20)
    message = refusal(source, folder_storage, group_pattern=PATTERN, validation=0.01)
    assert message.endswith(f"none of the 40 images falls into it: all of a group share one (pattern `{PATTERN}`).")


def test_a_group_with_more_than_half_of_the_images_is_named(tmp_path, folder_storage, caplog):
    source = write_patients(tmp_path / "images", range(5), images=4)
    write_patients(source, [2], first_seed=100, images=20)
    ingested(source, folder_storage, group_pattern=PATTERN)
    said = f"The group `p2` (pattern `{PATTERN}`) has 24 of 40 images, which share one split."
    assert said in warnings_in(caplog)


def test_groups_that_change_no_split_are_recorded_in_a_new_version_all_the_same(tmp_path, folder_storage):
    source = tmp_path / "images"
    for number, split in enumerate(["train", "val", "test"]):
        write_patients(source / split, [number], first_seed=10 * number)
    first = ingested(source, folder_storage)
    second = ingested(source, folder_storage, group_pattern=PATTERN)
    assert (second.counts, second.splitting.groups_by) == (first.counts, f"pattern `{PATTERN}`")
    store = open_store(folder_storage)
    groups = {shard.split: {*read_columns(store, shard, ["group"])["group"].to_pylist()} for shard in second.shards}
    assert groups == {"train": {"p0"}, "validation": {"p1"}, "test": {"p2"}}
    assert ingested(source, folder_storage, group_pattern=PATTERN) == second


def test_all_shards_have_the_column_of_groups_if_groups_come_later_even_those_without_a_grouped_image(
    tmp_path, folder_storage
):
    source = write_patients(tmp_path / "images" / "train", [1, 2]).parent
    write_classes(source / "val", first_seed=50, cat=2, dog=2)
    before = ingested(source, folder_storage)
    grouped = ingested(source, folder_storage, group_pattern=PATTERN)
    store = open_store(folder_storage)
    groups = {shard.split: {*read_columns(store, shard, ["group"])["group"].to_pylist()} for shard in grouped.shards}
    assert groups == {"train": {"p1", "p2"}, "validation": {None}}
    assert ingested(source, folder_storage, group_pattern=PATTERN) == grouped
    assert ingested(source, folder_storage).shards == before.shards
