"""The order of an epoch: every row once, the same for any number of workers, decided without reading."""

import itertools

import numpy as np
import pytest

from transfer.dataset.manifest import RowGroups, Shard
from transfer.dataset.order import PADDING, Order, WorkerSlice, permutation, steps_per_epoch


def shard(number, groups):
    """A shard whose row groups have these rows, each 10 bytes in size."""
    row_groups = RowGroups(rows=groups, footer_size_bytes=1, footer_sha256="0")
    rows = sum(groups)
    return Shard(
        name=str(number), sha256=str(number), split="train", rows=rows, size_bytes=rows * 10, row_groups=row_groups
    )


def some_shards(seed=0, count=6):
    """Shards of different sizes, and one of an earlier release."""
    random = np.random.default_rng(seed)
    new = [shard(number, random.integers(1, 9, random.integers(1, 6)).tolist()) for number in range(count)]
    of_all_images_of_a_group = new[0].without(np.arange(new[0].row_groups.rows[0]))
    return [of_all_images_of_a_group, *new[1:], Shard(name="old", sha256="old", split="train", rows=7, size_bytes=70)]


def batches(shards, *, batch_size=24, workers=1, window=300, seed=0, epoch=0, start_step=0):
    """The global batches, int64 [steps, batch_size], put together from what the workers take."""
    order = Order(shards, batch_size=batch_size, window_size_bytes=window, seed=seed)
    steps = steps_per_epoch(order.rows, batch_size)
    found = np.full((steps - start_step, batch_size), -2)
    for index in range(workers):
        own = WorkerSlice(index, workers).positions(batch_size)
        visits = list(order.epoch(epoch, own=own, start_step=start_step))
        rows, positions = (
            np.concatenate([getattr(visit, name)[visit.is_own] for visit in visits]) for name in ("rows", "positions")
        )
        assert (positions.reshape(-1, len(own)) == np.array(own)).all()
        found[:, own] = rows.reshape(-1, len(own))
    return found


@pytest.mark.parametrize("window", [1, 300, 1000, 10**6])
def test_every_row_is_visited_once_an_epoch(window):
    for seed in range(10):
        shards = some_shards(seed, count=seed + 1)
        rows = sum(shard.rows for shard in shards)
        for batch_size in (1, 7, 24):
            found = batches(shards, batch_size=batch_size, window=window, seed=seed or None).ravel()
            assert sorted(found[:rows]) == list(range(rows))  # The real rows of a short batch come first.
            assert (found[rows:] == PADDING).all()


@pytest.mark.parametrize("window", [1200, 10**6])
@pytest.mark.parametrize("seed", [None, 3])
def test_workers_share_the_same_batches_whatever_their_number(window, seed):
    shards = some_shards(count=40)
    order = Order(shards, batch_size=192, window_size_bytes=window)
    assert order.fits_window if window > 1200 else order.lanes == 16  # Lanes are shared by 3 and by 64 workers.
    for size, counts in ((192, (2, 3, 8, 64)), (24, (2, 3, 8))):
        expected = batches(shards, batch_size=size, window=window, seed=seed)
        for workers in counts:
            found = batches(shards, batch_size=size, window=window, seed=seed, workers=workers)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("window", [300, 10**6])
def test_another_number_of_workers_goes_on_in_the_middle_of_an_epoch(window):
    shards = some_shards()
    expected = batches(shards, window=window, epoch=2)
    for start_step in range(len(expected) + 1):
        rest = batches(shards, window=window, epoch=2, start_step=start_step, workers=1 + start_step % 3)
        np.testing.assert_array_equal(rest, expected[start_step:])


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    shards = some_shards()
    assert (batches(shards, seed=1, epoch=2) == batches(shards, seed=1, epoch=2)).all()
    assert (batches(shards, seed=1, epoch=2) != batches(shards, seed=1, epoch=3)).any()
    assert (batches(shards, seed=2, epoch=2) != batches(shards, seed=1, epoch=2)).any()


def test_a_split_that_fits_into_the_window_has_one_global_order():
    shards = some_shards()
    rows = sum(shard.rows for shard in shards)
    window = sum(shard.size_bytes for shard in shards)
    found = batches(shards, window=window, seed=5, epoch=1).ravel()[:rows]
    assert (found == permutation(shards, seed=5, epoch=1)).all()
    assert (batches(shards, window=window, seed=None).ravel()[:rows] == np.arange(rows)).all()
    changes = sum(a // 10 != b // 10 for a, b in itertools.pairwise(found))
    assert changes > 0.8 * rows


def test_rows_that_are_stored_together_end_up_apart_nearly_as_in_a_permutation():
    shards = [shard(number, [10] * 64) for number in range(30)]
    visited = batches(shards, batch_size=64, window=192 * 100).ravel()  # A tenth of the row groups.
    assert np.abs(np.diff(visited)).mean() == pytest.approx(len(visited) / 3, rel=0.03)
    classes = visited * 20 // len(visited)  # As if the split were sorted by class.
    a_batch = [len(np.unique(batch)) for batch in classes.reshape(-1, 64)]
    # 64 independent draws of 20 classes have 20 (1 - 0.95^64) = 19.25 of them on average.
    assert np.mean(a_batch) == pytest.approx(19.25, abs=0.2)


def test_there_are_as_many_lanes_as_the_window_has_room_for():
    small, large = [shard(number, [4] * 100) for number in range(3)], [shard(3, [1200])]
    lanes = {
        (name, window): Order(shards, batch_size=192, window_size_bytes=window).lanes
        for name, shards in (("small", small), ("large", large), ("mixed", small + large))
        for window in (10_000, 20_000, 100_000)
    }
    assert [lanes["small", window] for window in (10_000, 20_000, 100_000)] == [64, 64, 64]
    assert [lanes["large", window] for window in (10_000, 20_000, 100_000)] == [1, 1, 8]
    # Half of it in one large row group, as a shard of an earlier release is, needs nearly as much memory as all of it.
    assert [lanes["mixed", window] for window in (10_000, 20_000, 100_000)] == [1, 3, 16]
    assert Order(small, batch_size=127, window_size_bytes=10_000).lanes == 1


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_a_worker_needs_the_row_groups_of_its_own_rows_and_holds_no_more_than_its_part_of_the_window(workers):
    shards = [shard(number, [10] * 64) for number in range(30)]  # 1,920 row groups of 100 bytes.
    window, groups = 100 * 100, 1920
    order = Order(shards, batch_size=24, window_size_bytes=window, seed=0)
    assert order.lanes == 24
    for index in range(workers):
        own = WorkerSlice(index, workers).positions(24)
        needed = np.concatenate([visit.rows[visit.is_own] for visit in order.epoch(0, own=own)]) // 10
        needed = needed[needed >= 0]
        groups_read, most = set(), 0
        for done, group in enumerate(needed.tolist()):
            groups_read.add(group)
            most = max(most, 10 * len(groups_read) - done)  # Rows that were read and not yet taken.
        assert len(groups_read) <= groups / workers + 2
        assert 0.7 * window / workers < most * 10 <= 1.1 * window / workers


def test_the_last_short_batch_is_a_step_too():
    assert [steps_per_epoch(rows, 8) for rows in (0, 1, 8, 9)] == [0, 1, 1, 2]
