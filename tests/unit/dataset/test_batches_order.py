"""The order of an epoch: every row once, the same for everybody, decided without reading."""

import itertools

import numpy as np
import pytest

from transfer.dataset.batches import WorkerSlice, steps_per_epoch, windows
from transfer.dataset.manifest import Shard

SHARDS = [
    Shard(name=f"shards/{index}", sha256=str(index), split="train", rows=rows, size_bytes=rows * 10)
    for index, rows in enumerate([5, 7, 1, 12, 3, 9])
]
ROWS = sum(shard.rows for shard in SHARDS)


def visited(**options):
    """(shard, row) pairs in the order of an epoch."""
    found = []
    for window in windows(SHARDS, **options):
        assert window.start == len(found)
        rows = [(shard.name, row) for shard in window.shards for row in range(shard.rows)]
        found += [rows[index] for index in window.order]
    return found


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_every_row_is_visited_once_an_epoch(size):
    found = visited(window_size_bytes=size, seed=1, epoch=3)
    assert len(found) == len(set(found)) == ROWS


def test_without_a_seed_rows_come_as_they_are_stored():
    found = visited(window_size_bytes=100)
    assert found == [(shard.name, row) for shard in SHARDS for row in range(shard.rows)]


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    options = {"window_size_bytes": 100}
    assert visited(seed=1, epoch=2, **options) == visited(seed=1, epoch=2, **options)
    assert visited(seed=1, epoch=2, **options) != visited(seed=1, epoch=3, **options)
    assert visited(seed=2, epoch=2, **options) != visited(seed=1, epoch=2, **options)


def test_a_window_holds_no_more_than_its_size_unless_one_shard_is_larger():
    for window in windows(SHARDS, window_size_bytes=100, seed=0):
        assert sum(shard.size_bytes for shard in window.shards) <= 100 or len(window.shards) == 1


def test_large_windows_mix_rows_of_all_shards():
    found = visited(window_size_bytes=10_000, seed=0)
    changes = sum(a[0] != b[0] for a, b in itertools.pairwise(found))
    assert changes > len(SHARDS) * 2


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_workers_share_every_batch_without_overlap(count):
    positions = [position for index in range(count) for position in WorkerSlice(index, count).positions(16)]
    assert positions == list(range(16))


def test_the_last_short_batch_is_a_step_too():
    assert [steps_per_epoch(rows, 8) for rows in (0, 1, 8, 9)] == [0, 1, 1, 2]
    assert np.ceil(37 / 8) == steps_per_epoch(37, 8)
