"""The images and labels of an epoch's rows, read a row group at a time, ahead of their use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard
from transfer.dataset.order import PADDING, Order, Visit
from transfer.dataset.row_groups import ROW_GROUP_SIZE_BYTES, BinaryColumn, Footers
from transfer.dataset.shards import read_row_group
from transfer.runtime.parallel import in_order
from transfer.storage import Store

COLUMNS = ["image", "label"]
MOST_READERS = 32
"""As many requests to S3 have a connection at the same time."""
READERS = min(max(2 * (os.cpu_count() or 1), 8), MOST_READERS)
"""Requests that are under way at the same time. They wait for the storage's latency, not for a CPU."""
READ_AHEAD_BYTES = 2 * READERS * ROW_GROUP_SIZE_BYTES
"""Row groups that are read ahead of their use, beside the window: while one is slow, so much is used without a stop."""
_VISITS_AHEAD = 256
"""Visits that are planned ahead at most, where everything is in memory already."""


@dataclass(frozen=True)
class Rows:
    """Some rows of one worker."""

    images: np.ndarray
    """bytes [n]: the encoded images; none in padding."""
    labels: np.ndarray
    """int32 [n]; 0 in padding."""
    is_real: np.ndarray
    """bool [n]: whether it is a row of the dataset, and not padding of a short batch."""
    positions: np.ndarray
    """int64 [n]: positions in the global batch."""


class RowReader:
    """Reads the rows of a worker, epoch after epoch. Memory holds the rows that were read and not yet taken."""

    def __init__(self, store: Store, shards: Sequence[Shard], order: Order) -> None:
        self._store = store
        self._order = order
        self._footers = Footers()
        self._places = [(shard, group) for shard in shards for group in range(len(shard.rows_of_groups))]

    def rows(self, epochs: Iterable[int], *, own: range, start_step: int) -> Iterator[Rows]:
        """Yield the worker's rows at the positions `own` of all batches, in order, some at a time.

        `start_step` counts for the first epoch. Raises CorruptObjectError, ObjectNotFoundError, StorageError.
        """
        with ThreadPoolExecutor(READERS) as readers:
            try:
                planned = self._planned(epochs, own, start_step, readers)
                yield from in_order(planned, self._taken, is_full=_is_far_ahead)
            finally:
                readers.shutdown(wait=False, cancel_futures=True)

    def _planned(
        self, epochs: Iterable[int], own: range, start_step: int, readers: ThreadPoolExecutor
    ) -> Iterator[_Planned]:
        """Begin to read each row group when its first row is planned, and forget it with its last one.

        A split that fits into the window is kept for the epochs to come. Otherwise, two row groups at most stay until
        the epoch ends: those of which another worker takes a part.
        """
        order, held = self._order, dict[int, Future[_Group]]()
        for epoch in epochs:
            left = order.group_rows.copy()
            for visit in order.epoch(epoch, own=own, start_step=start_step):
                groups = np.searchsorted(order.group_starts, visit.rows, side="right") - 1
                is_real = visit.rows != PADDING
                needed = list(dict.fromkeys(groups[is_real & visit.is_own].tolist()))
                missing = [group for group in needed if group not in held]
                held |= {group: readers.submit(self._read, group) for group in missing}
                size_bytes = float(order.group_sizes_bytes[missing].sum())
                yield _Planned(visit, groups, {group: held[group] for group in needed}, size_bytes)
                passed, counts = np.unique(groups[is_real], return_counts=True)
                left[passed] -= counts
                if not order.fits_window:
                    for group in passed[left[passed] == 0].tolist():
                        held.pop(group, None)
            if not order.fits_window:
                held.clear()
            start_step = 0

    def _read(self, group: int) -> _Group:
        shard, group_of_shard = self._places[group]
        table = read_row_group(self._store, shard, group_of_shard, columns=COLUMNS, footers=self._footers)
        column = BinaryColumn(table["image"])
        return _Group([column[row] for row in range(len(table))], table["label"].to_numpy())

    def _taken(self, planned: _Planned) -> Rows:
        visit, is_own = planned.visit, planned.visit.is_own
        groups, numbers = planned.groups[is_own], visit.rows[is_own]
        is_real = numbers != PADDING
        read = {group: future.result() for group, future in planned.read.items()}
        images = np.full(len(numbers), b"", dtype=object)
        labels = np.zeros(len(numbers), np.int32)
        rows_in_group = numbers - self._order.group_starts[groups]
        for place in np.flatnonzero(is_real).tolist():
            group, row = read[groups[place]], rows_in_group[place]
            images[place], labels[place] = group.images[row], group.labels[row]
            if not self._order.fits_window:
                group.images[row] = b""  # Each row is taken once an epoch.
        return Rows(images, labels, is_real, visit.positions[is_own])


@dataclass(frozen=True, eq=False)
class _Group:
    """A row group in memory."""

    images: list[bytes]
    """The encoded images; none where a row was taken and does not come again."""
    labels: np.ndarray


@dataclass(frozen=True)
class _Planned:
    """A visit whose row groups are being read."""

    visit: Visit
    groups: np.ndarray
    """int64 [n]: the row group of each row."""
    read: dict[int, Future[_Group]]
    size_bytes: float
    """Size of the row groups that this visit is the first to need."""


def _is_far_ahead(waiting: Sequence[_Planned]) -> bool:
    return len(waiting) > _VISITS_AHEAD or sum(planned.size_bytes for planned in waiting) > READ_AHEAD_BYTES
