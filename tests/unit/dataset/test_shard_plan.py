"""The plan: pure functions of what is known about images."""

import hashlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from transfer.dataset.listing import Checked, CheckedColumns, Listing, batches
from transfer.dataset.manifest import Shard
from transfer.dataset.shard_plan import plan_shards
from transfer.dataset.shards import Images, RecordedShard, unique_images
from transfer.dataset.splits import SPLITS, nothing_given, split_indices


def known(*images):
    """What is known about images given as (key, label, content)."""
    labels = sorted({label for _, label, _ in images})
    listing = Listing(
        keys=pa.chunked_array([pa.array([key], pa.string()) for key, _, _ in images], pa.string()),
        label_codes=np.array([labels.index(label) for _, label, _ in images], np.int32),
        sizes_bytes=np.full(len(images), -1),
        marks=np.zeros((len(images), 2), np.uint64),
        labels=labels,
        rejects=[],
        given=nothing_given(len(images)),
    )
    checked = CheckedColumns()
    for row, (_, _, content) in enumerate(images):
        checked.add(row, Checked(hashlib.sha256(content.encode()).digest(), 4, 3, 10))
    return listing, checked


def unique(*images, validation=0.0, test=0.0):
    listing, checked = known(*images)
    indices = np.arange(len(listing.labels), dtype=np.int32)
    kept, rejects = unique_images(listing, checked, indices, validation=validation, test=test)
    return [listing.keys[int(row)].as_py() for row in kept.rows], rejects, kept


def many(count, **shares):
    return unique(*[(f"{n}", "ab"[n % 2], f"{n}") for n in range(count)], **shares)[2]


def part_of(images, places):
    return Images(**{name: column[places] for name, column in vars(images).items()})


def planned(images, parent, size_bytes, **options):
    """The plan, and the version's shards as if it had been carried out: each image is in one of their live rows."""
    plan = plan_shards(images, parent, shard_size_bytes=size_bytes, **options)
    stored = {each.shard.name: each for each in parent}
    shards = []
    for shard in plan.kept:
        before = stored[shard.name]
        live = np.isin(before.rows, shard.live_rows())
        shards.append(RecordedShard(shard, *(column[live] for column in (before.words, before.labels, before.groups))))
    for new in plan.new:
        words = images.words[new.images]
        for (source, row), digest in zip(new.origins, words, strict=True) if new.sources else ():
            origin = stored[new.sources[source].name]
            assert (origin.words[origin.rows == row] == digest).all()
        name = hashlib.sha256(words.tobytes() + new.split.encode()).hexdigest()
        size = int(images.sizes_bytes[new.images].sum())
        shard = Shard(name=name, sha256=name, split=new.split, rows=len(words), size_bytes=size)
        shards.append(RecordedShard(shard, words, images.labels[new.images], images.groups[new.images]))
    for index, split in enumerate(SPLITS):
        of_split = [each for each in shards if each.shard.split == split]
        words = np.concatenate([np.empty((0, 4), np.uint64), *(each.words for each in of_split)])
        labels = np.concatenate([np.empty(0, np.int32), *(each.labels for each in of_split)])
        order = np.lexsort(words.T[::-1])
        assert np.array_equal(words[order], images.words[images.splits == index])
        assert np.array_equal(labels[order], images.labels[images.splits == index])
    for each in shards:
        assert np.array_equal(np.lexsort(each.words.T[::-1]), np.arange(len(each.words)))
    return plan, shards


def parent_of(images, size_bytes):
    """The shards of a first version."""
    return planned(images, [], size_bytes)[1]


def rows_of(plan):
    return [len(shard.images) for shard in plan.new]


def test_an_image_that_changed_its_group_is_written_again():
    images = many(12)
    parent = parent_of(images, 40)
    assert not planned(images, parent, 40)[0].new
    moved = replace(images, groups=np.where(np.arange(12) == 0, np.uint64(7), images.groups))
    plan, _ = planned(moved, parent, 40)
    assert [shard.removed for shard in plan.kept] == [(0,), (), ()]
    assert rows_of(plan) == [1]


def test_copies_with_one_label_are_kept_once():
    keys, rejects, _ = unique(("b", "cat", "same"), ("a", "cat", "same"), ("c", "cat", "other"), ("d", "cat", "same"))
    assert sorted(keys) == ["b", "c"]
    assert [(r.key, r.reason) for r in rejects] == [("a", "duplicate"), ("d", "duplicate")]
    assert all("same bytes as b" in reject.detail for reject in rejects)


def test_of_copies_with_and_without_a_given_split_the_one_in_test_is_kept_else_in_validation_else_in_train():
    listing, checked = known(*[(f"{n}", "cat", "same") for n in range(5)])
    for given, kept_key in (
        ([-1, 0, 1, 2, 2], "3"),
        ([-1, 0, 1, 0, 1], "2"),
        ([-1, 0, -1, -1, 0], "1"),
        ([-1, -1, -1, -1, -1], "0"),
    ):
        listing.given.splits[:] = given
        images, rejects = unique_images(
            listing, checked, np.zeros(1, np.int32), validation=0.0, test=0.0, may_straddle=True
        )
        assert [listing.keys[int(row)].as_py() for row in images.rows] == [kept_key]
        assert {each.detail for each in rejects} == {f"the same bytes as {kept_key}, which is kept"}


def test_copies_with_several_labels_are_all_refused():
    keys, rejects, _ = unique(("a", "cat", "same"), ("b", "dog", "same"), ("c", "cat", "same"), ("d", "dog", "x"))
    assert keys == ["d"]
    assert {(r.key, r.reason) for r in rejects} == {(key, "conflicting_labels") for key in "abc"}
    assert {r.key: r.detail for r in rejects}["b"] == "labeled dog; a has the same bytes and is labeled cat"
    assert {r.key: r.detail for r in rejects}["c"] == "labeled cat; b has the same bytes and is labeled dog"


def test_the_order_in_which_images_were_checked_does_not_matter():
    listing, checked = known(*[(f"{n:02d}", "ab"[n % 2], f"{n // 4}") for n in range(40)])
    turned = CheckedColumns()
    for place in reversed(range(40)):
        digest = bytes(checked.digests[32 * place : 32 * place + 32])
        turned.add(checked.rows[place], Checked(digest, 4, 3, 10))
    plans = [unique_images(listing, each, np.zeros(2, np.int32), validation=0.2, test=0) for each in (checked, turned)]
    (images, rejects), (images_turned, rejects_turned) = plans
    assert len(images) == 10
    assert rejects == rejects_turned
    assert all((column == vars(images_turned)[name]).all() for name, column in vars(images).items())


def test_kept_images_are_sorted_by_digest():
    images = many(300)
    digests = [row.astype(">u8").tobytes() for row in images.words]
    assert digests == sorted(digests)
    assert digests[0] == min(hashlib.sha256(str(n).encode()).digest() for n in range(300))


def test_nothing_known_is_nothing_planned():
    listing, checked = known()
    images, rejects = unique_images(listing, checked, np.zeros(0, np.int32), validation=0.1, test=0.1)
    assert (len(images), rejects) == (0, [])
    assert plan_shards(images, [], shard_size_bytes=100).new == []


def test_splits_have_their_shares_and_are_decided_by_content_alone():
    images = many(20_000, validation=0.2, test=0.1)
    shares = np.bincount(images.splits, minlength=3) / len(images)
    # Binomial with n = 20,000: three standard deviations are below 0.01.
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    half = part_of(images, np.arange(0, len(images), 2))
    assert (split_indices(half.words[:, 0], validation=0.2, test=0.1) == half.splits).all()


def test_another_share_of_validation_leaves_the_test_split_as_it_is():
    before, after = many(2_000, validation=0.2, test=0.1), many(2_000, validation=0.4, test=0.1)
    test = SPLITS.index("test")
    assert ((before.splits == test) == (after.splits == test)).all()
    assert (before.splits != after.splits).any()


def test_the_extremes_of_a_digest_have_a_split():
    heads = np.array([0, 2**64 - 1], np.uint64)
    assert [SPLITS[i] for i in split_indices(heads, validation=0.3, test=0.0)] == ["validation", "train"]
    assert [SPLITS[i] for i in split_indices(heads, validation=0.0, test=0.3)] == ["test", "train"]


def test_a_shard_is_closed_when_its_images_reach_the_size():
    plan = plan_shards(many(25), [], shard_size_bytes=100)
    assert [len(shard.images) for shard in plan.new] == [10, 10, 5]
    assert [len(shard.images) for shard in plan_shards(many(3), [], shard_size_bytes=1).new] == [1, 1, 1]


def test_images_of_any_sizes_are_cut_where_adding_them_up_one_by_one_would():
    images = many(200)
    images.sizes_bytes[:] = np.random.default_rng(0).integers(1, 150, len(images))
    cuts, size_bytes = [], 0
    for place, image_size_bytes in enumerate(images.sizes_bytes.tolist(), start=1):
        size_bytes += image_size_bytes
        if size_bytes >= 100 or place == len(images):
            cuts.append(place)
            size_bytes = 0
    plan = plan_shards(images, [], shard_size_bytes=100)
    assert np.cumsum([len(shard.images) for shard in plan.new]).tolist() == cuts


def test_the_same_images_leave_the_parent_as_it_is():
    images = many(100, validation=0.3)
    parent = parent_of(images, 100)
    # Neither another size of shards nor many small ones are a reason to write them anew.
    for size_bytes in (55, 5555):
        assert planned(images, parent, size_bytes)[0].leaves_as_it_is([shard.shard for shard in parent])


def test_new_images_go_to_new_shards():
    images = many(100, validation=0.3)
    old, new = np.arange(0, 100, 2), np.arange(1, 100, 2)
    parent = parent_of(part_of(images, old), 100)
    plan, _ = planned(images, parent, 100)
    assert plan.kept == [shard.shard for shard in parent]
    assert sorted(np.concatenate([shard.images for shard in plan.new])) == new.tolist()
    assert not any(shard.sources for shard in plan.new)


def test_a_shard_that_lost_an_image_stays_without_it():
    images = many(100)
    parent = parent_of(images, 100)
    for first in (1, 2):
        plan, parent = planned(part_of(images, np.arange(first, 100)), parent, 100)
        assert (plan.kept[0].removed, plan.kept[0].rows, plan.kept[0].stored_rows) == ((0, 1)[:first], 10 - first, 10)
        assert not plan.new
    # One that comes back is written once more, from the source.
    plan, _ = planned(images, parent, 100)
    assert plan.kept == [shard.shard for shard in parent]
    assert [(new.images.tolist(), new.sources) for new in plan.new] == [([0, 1], ())]


def test_a_shard_that_lost_more_than_a_quarter_is_given_up_and_the_rest_copied():
    images = many(100)
    parent = parent_of(images, 100)
    plan, _ = planned(part_of(images, np.arange(3, 100)), parent, 100)
    assert plan.kept == [shard.shard for shard in parent[1:]]
    ((copied),) = plan.new
    assert copied.sources == (parent[0].shard,)
    assert copied.origins.tolist() == [[0, row] for row in range(3, 10)]
    empty, _ = planned(part_of(images, np.arange(10, 100)), parent, 100)
    assert (empty.kept, empty.new) == (plan.kept, [])


def test_an_image_with_another_label_or_split_is_written_from_the_source():
    images = many(100)
    parent = parent_of(images, 100)
    for column in ("labels", "splits"):
        changed = part_of(images, np.arange(100))
        getattr(changed, column)[55] ^= 1
        plan, _ = planned(changed, parent, 100)
        assert [shard.removed for shard in plan.kept] == [()] * 5 + [(5,)] + [()] * 4
        assert [(new.images.tolist(), new.sources) for new in plan.new] == [([55], ())]


def test_where_all_labels_change_each_shard_is_read_for_two_others_at_most():
    images = many(1000)
    parent = parent_of(images, 100)
    plan, _ = planned(replace(images, labels=images.labels + 1), parent, 230)
    assert plan.kept == []
    readers = [source.name for new in plan.new for source in new.sources]
    assert {name: readers.count(name) for name in readers}.keys() == {each.shard.name for each in parent}
    assert max(readers.count(name) for name in readers) <= 2


def test_shards_with_other_columns_are_copied_as_a_whole():
    images = many(100)
    parent = parent_of(images, 100)
    plan, _ = planned(images, parent, 100, same_columns=False)
    assert (plan.kept, rows_of(plan)) == ([], [10] * 10)
    assert all(new.sources for new in plan.new)


def test_whatever_comes_goes_and_changes_each_image_is_in_one_live_row_and_reads_as_it_is():
    images, random = many(600, validation=0.2), np.random.default_rng(0)
    is_there, parent = random.random(600) < 0.5, []
    for night in range(40):
        is_there ^= random.random(600) < (0.02, 0.3)[night % 7 == 6]
        changed = random.random(600) < 0.01
        images = replace(images, labels=images.labels ^ changed)
        plan, parent = planned(part_of(images, is_there), parent, 200, same_columns=night != 20)
        assert all(len(shard.removed) <= 0.25 * shard.stored_rows for shard in plan.kept)


def nights(images, first, each, size_bytes):
    """A year of nights with so many new images each: rows that were copied, and the most shards beyond one ingest's."""
    age = np.argsort(np.argsort(np.random.default_rng(0).permutation(len(images))))
    parent, copied, most = parent_of(part_of(images, age < first), size_bytes), 0, 0
    for count in range(first + each, len(images) + 1, each):
        tonight = part_of(images, age < count)
        plan, parent = planned(tonight, parent, size_bytes)
        copied += sum(len(new.images) for new in plan.new if new.sources)
        of_one_ingest = sum(-(-rows // -(-size_bytes // 10)) for rows in np.bincount(tonight.splits).tolist())
        most = max(most, len(parent) - of_one_ingest)
    return copied, most


@pytest.mark.parametrize("shards", [pytest.param(0.3, marks=pytest.mark.proof), 30])
def test_a_year_of_nights_leaves_few_shards_and_copies_each_image_a_few_times(shards):
    first, each, count = 1000, 3, 365
    images = many(first + count * each, validation=0.15, test=0.15)
    copied, most = nights(images, first, each, int(10 * first / shards))
    assert most <= 12
    assert copied <= 9 * count * each


def test_digests_that_share_their_first_64_bits_are_told_apart():
    images = many(4)
    images.words[:, 0] = 7
    order = np.lexsort(images.words.T[::-1])
    images = part_of(images, order)
    parent = parent_of(images, 1000)
    strange = part_of(images, np.arange(4))
    strange.words[:, 3] += 1
    assert plan_shards(strange, parent, shard_size_bytes=1000).kept == []


def test_batches_are_limited_by_images_and_bytes():
    unknown = np.full(7, -1)
    assert list(batches(unknown, max_images=3, max_size_bytes=1)) == [(0, 3), (3, 6), (6, 7)]
    sizes_bytes = np.array([5, 5, 50, 1, 1, 1, 1])
    assert list(batches(sizes_bytes, max_images=3, max_size_bytes=10)) == [(0, 2), (2, 3), (3, 6), (6, 7)]
