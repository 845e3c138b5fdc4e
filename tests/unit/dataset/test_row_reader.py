"""Rows of an epoch, read from storage."""

import threading
import weakref

import numpy as np
import pytest

from transfer.config import StorageConfig
from transfer.dataset import row_groups, row_reader
from transfer.dataset.order import Order, WorkerSlice, steps_per_epoch
from transfer.dataset.row_reader import RowReader
from transfer.dataset.shards import write_shard
from transfer.storage import open_store

BATCH = 48
IMAGE_BYTES = 16 * 1024
GROUP_BYTES = 64 * 1024
ROWS = 2021
WINDOW = 48 * 4 * GROUP_BYTES


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A store and shards of small row groups, 32 MB together. An image says which row it is; so does its label."""
    store = open_store(StorageConfig(uri=str(tmp_path_factory.mktemp("storage"))))
    rows = [
        {
            "key": "",
            "image": number.to_bytes(4) * (IMAGE_BYTES // 4),
            "label": number,
            "sha256": "",
            "width": 1,
            "height": 1,
        }
        for number in range(ROWS)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_groups, "ROW_GROUP_SIZE_BYTES", GROUP_BYTES)
        shards = [write_shard(store, rows[start : start + 256], split="train") for start in range(0, ROWS, 256)]
    assert [len(shard.rows_of_groups) for shard in shards] == [64] * 7 + [58]
    return store, shards


def reading(split, *, workers=1, index=0, epochs=(0,), start_step=0, window=WINDOW):
    """The rows of a worker, some at a time."""
    store, shards = split
    order = Order(shards, batch_size=BATCH, window_size_bytes=window, seed=0)
    own = WorkerSlice(index, workers).positions(BATCH)
    yield from RowReader(store, shards, order).rows(epochs, own=own, start_step=start_step)


@pytest.fixture
def read_bytes(split, monkeypatch):
    """Lengths of all that is read from the store."""
    store, _ = split
    lengths, opened = [], store.open_verified

    def counted(name, sha256, *, start=0, length=None):
        lengths.append(store.size(name) if length is None else length)
        return opened(name, sha256, start=start, length=length)

    monkeypatch.setattr(store, "open_verified", counted)
    return lengths


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_workers_together_read_each_row_once_and_each_of_them_little_but_its_rows(split, read_bytes, workers):
    _, shards = split
    size_bytes, labels = sum(shard.size_bytes for shard in shards), []
    for index in range(workers):
        read_bytes.clear()
        for rows in reading(split, workers=workers, index=index):
            assert all(
                image[:4] == int(label).to_bytes(4)
                for image, label in zip(rows.images[rows.is_real], rows.labels[rows.is_real], strict=True)
            )
            labels += rows.labels[rows.is_real].tolist()
        assert sum(read_bytes) <= 1.1 * size_bytes / workers
    assert sorted(labels) == list(range(ROWS))


def test_an_epoch_that_goes_on_reads_what_is_left_of_it(split, read_bytes):
    _, shards = split
    steps = steps_per_epoch(ROWS, BATCH)
    rest = list(reading(split, start_step=steps - 2))
    assert sum(rows.is_real.sum() for rows in rest) == ROWS - (steps - 2) * BATCH
    assert sum(read_bytes) < sum(shard.size_bytes for shard in shards) / 4


def test_a_split_that_fits_into_the_window_is_read_once(split, read_bytes):
    _, shards = split
    labels = np.concatenate([rows.labels[rows.is_real] for rows in reading(split, epochs=range(2), window=10**9)])
    assert [sorted(labels[:ROWS]), sorted(labels[ROWS:])] == [list(range(ROWS))] * 2
    assert sum(read_bytes) <= sum(shard.size_bytes for shard in shards)


def test_a_slow_row_group_does_not_stop_the_others(split, monkeypatch):
    read, others_are_read = [], threading.Event()
    read_group = RowReader._read

    def slow_once(self, group):
        read.append(group)
        if len(read) == 20:
            assert others_are_read.wait(30)
        elif len(read) == 100:
            others_are_read.set()
        return read_group(self, group)

    monkeypatch.setattr(RowReader, "_read", slow_once)
    assert sum(rows.is_real.sum() for rows in reading(split)) == ROWS


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_holds_the_window_and_what_is_read_ahead(split, monkeypatch, workers):
    monkeypatch.setattr(row_reader, "READ_AHEAD_BYTES", 8 * GROUP_BYTES)
    read_group, alive, most = RowReader._read, weakref.WeakSet(), 0

    def counted(self, group):
        found = read_group(self, group)
        alive.add(found)
        return found

    monkeypatch.setattr(RowReader, "_read", counted)
    window = WINDOW // 2
    for _ in reading(split, workers=workers, epochs=range(2), window=window):
        most = max(most, sum(len(image) for group in list(alive) for image in group.images))
    # Beside its part of the window: what is read ahead, and the row groups of two visits.
    assert 0.4 * window / workers < most <= window / workers + 32 * GROUP_BYTES


def test_a_reader_that_stops_early_leaves_no_thread(split):
    before = {*threading.enumerate()}
    rows = reading(split)
    next(rows)
    assert {*threading.enumerate()} - before
    rows.close()
    assert not {*threading.enumerate()} - before
