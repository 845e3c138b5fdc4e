"""The order in which the epochs of training visit the images of a split, decided without reading any.

It is a pure function of the shards, the batch size, the shuffle window, the seed and the epoch. It never depends on the
number of workers, so 1 worker and 64 workers train on the same global batches.

A split that fits into the shuffle window has one global permutation of its rows. A larger one goes through lanes, so
that a worker reads little but the rows that it trains on:

- All row groups are permuted. The sequence of their rows is cut into lanes of equal length, and each global batch takes
  the same number of rows from each lane, always at the same positions. Workers own positions, and with them lanes.
- In a lane, each row group's rows are spread at random over the bytes that follow its beginning, about twice as many as
  the lane's part of the window. So rows of several row groups mix, row groups are needed one by one, and the rows that
  were read and not yet taken are as many as the window holds. (Compare `py1e` of mosaicml/streaming.)
- Every second lane visits its row groups backwards: the row group that two neighboring lanes share is needed by both at
  the same time, either first or last, and read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard

MAX_LANES = 64
PADDING = -1
_ROWS_AT_ONCE = 256
"""Rows of a visit: many, because each visit has a cost, but no more than a sixteenth of the window."""


@dataclass(frozen=True)
class WorkerSlice:
    """The part of each global batch that one worker takes."""

    index: int = 0
    count: int = 1

    def positions(self, batch_size: int) -> range:
        """Positions of this worker in a global batch of `batch_size` rows, a multiple of `count`."""
        share = batch_size // self.count
        return range(self.index * share, (self.index + 1) * share)


@dataclass(frozen=True)
class Visit:
    """Consecutive rows of an epoch: whole lanes of a few steps, of which one worker takes some rows."""

    rows: np.ndarray
    """int64 [n]: numbers of the rows in the split as it is stored; PADDING where the last batch is short."""
    positions: np.ndarray
    """int64 [n]: their positions in the global batch."""
    is_own: np.ndarray
    """bool [n]: whether the worker takes the row. The others belong to other workers, or to skipped steps."""


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Number of batches in an epoch; the last one may be short."""
    return -(-rows // batch_size)


def permutation(shards: Sequence[Shard], *, seed: int | None, epoch: int) -> np.ndarray:
    """Rows of all shards, int64 [rows], in one global order; as they are stored if `seed` is None.

    A row's number counts over the shards in their stored order.
    """
    counts = [shard.rows for shard in shards]
    if seed is None:
        return np.arange(sum(counts))
    generator = np.random.default_rng([seed, epoch])
    starts = np.cumsum([0, *counts])
    visited = np.concatenate([starts[i] + np.arange(counts[i]) for i in generator.permutation(len(shards))])
    return np.take(visited, generator.permutation(len(visited)))


class Order:
    """The order of a split's rows in batches of `batch_size`. With `seed` None, nothing is random."""

    def __init__(
        self, shards: Sequence[Shard], *, batch_size: int, window_size_bytes: int, seed: int | None = None
    ) -> None:
        self._shards = shards
        self._batch_size = batch_size
        self._seed = seed
        self.group_rows = np.array([rows for shard in shards for rows in shard.rows_of_groups], np.int64)
        """Rows of each row group of the split."""
        # Row groups are closed at a size in bytes, so those of a shard have one size; the last one may be smaller.
        sizes_bytes = [shard.size_bytes / max(len(shard.rows_of_groups), 1) for shard in shards]
        self.group_sizes_bytes = np.repeat(sizes_bytes, [len(shard.rows_of_groups) for shard in shards])
        """Approximate sizes of the row groups."""
        self.group_starts = np.cumsum(self.group_rows) - self.group_rows
        """Number of each row group's first row."""
        self.rows = int(self.group_rows.sum())
        size_bytes = sum(shard.size_bytes for shard in shards)
        self._rows_at_once = min(_ROWS_AT_ONCE, window_size_bytes * self.rows // (16 * max(size_bytes, 1)))
        self.fits_window = size_bytes <= window_size_bytes
        """Whether the whole split is held in memory, with one global order."""
        # The mean size of a row group by bytes: half of a split in few large ones needs as much memory as all of it.
        group_size_bytes = float((self.group_sizes_bytes**2).sum()) / max(size_bytes, 1)
        most = min(max(int(window_size_bytes / max(group_size_bytes, 1)), 1), MAX_LANES)
        self.lanes = max(lanes for lanes in range(1, most + 1) if batch_size % lanes == 0)
        """The largest divisor of the batch size of which each lane's part of the window has room for a row group."""
        # Rows leave memory when they are taken, and of a row group half are left on average: twice the room of a lane.
        self._spread_bytes = max(2 * window_size_bytes / self.lanes - group_size_bytes, 1.0)

    def epoch(self, epoch: int, *, own: range, start_step: int = 0) -> Iterator[Visit]:
        """Visit the rows of an epoch, with those of the worker that takes the positions `own` of every batch.

        The worker takes no rows of the steps before `start_step`.
        """
        width = 1 if self.fits_window else self._batch_size // self.lanes
        lanes = range(own.start // width, -(-own.stop // width))
        positions = np.arange(lanes.start * width, lanes.stop * width)
        at_once = max(self._rows_at_once // len(positions), 1)
        visited = self._whole(epoch, own, at_once) if self.fits_window else self._lanes(epoch, lanes, width, at_once)
        is_own = (positions >= own.start) & (positions < own.stop)
        step = 0
        for rows in visited:
            is_reached = np.arange(step, step + len(rows)) >= start_step
            yield Visit(rows.ravel(), np.tile(positions, len(rows)), np.outer(is_reached, is_own).ravel())
            step += len(rows)

    def _whole(self, epoch: int, own: range, at_once: int) -> Iterator[np.ndarray]:
        """Yield the rows of some steps at the positions `own`, int64 [steps, positions], in one global order."""
        order = permutation(self._shards, seed=self._seed, epoch=epoch)
        padded = np.pad(order, (0, -len(order) % self._batch_size), constant_values=PADDING)
        batches = padded.reshape(-1, self._batch_size)[:, own.start : own.stop]
        yield from (batches[first : first + at_once] for first in range(0, len(batches), at_once))

    def _lanes(self, epoch: int, numbers: range, width: int, at_once: int) -> Iterator[np.ndarray]:
        """Yield the rows of some steps in the lanes `numbers`, int64 [steps, lanes * width]."""
        full_steps, rest = divmod(self.rows, self._batch_size)
        # The real rows of a short last batch come first.
        real = np.clip(rest - np.arange(self.lanes) * width, 0, width)
        edges = np.cumsum([0, *(full_steps * width + real)])
        groups = len(self.group_rows)
        visited = np.arange(groups) if self._seed is None else _generator(self._seed, epoch).permutation(groups)
        ends = np.cumsum(self.group_rows[visited])
        lanes = []
        for number in numbers:
            parts = self._parts(visited, ends, edges[number], edges[number + 1], is_reversed=number % 2 == 0)
            # A 0 at the end of the seed would change nothing.
            generator = None if self._seed is None else _generator(self._seed, epoch, number + 1)
            lanes.append(_Lane(_spread(parts, self._spread_bytes, generator)))
        for first in range(0, full_steps, at_once):
            count = min(at_once, full_steps - first) * width
            yield np.concatenate([lane.take(count).reshape(-1, width) for lane in lanes], axis=1)
        if rest:
            left = [lane.left() for lane in lanes]
            last = [np.pad(rows, (0, width - len(rows)), constant_values=PADDING) for rows in left]
            yield np.concatenate(last)[None]

    def _parts(
        self, visited: np.ndarray, ends: np.ndarray, start: int, stop: int, *, is_reversed: bool
    ) -> Iterator[tuple[np.ndarray, float]]:
        """The visited row groups between two places of their rows, or the parts of them there: rows, size in bytes."""
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
        groups = range(int(first), int(last) + 1)
        for place in reversed(groups) if is_reversed else groups:
            group = visited[place]
            begin = ends[place] - self.group_rows[group]
            rows = np.arange(max(start, begin), min(stop, ends[place])) - begin
            if len(rows):  # All images of a row group may have been removed.
                size_bytes = self.group_sizes_bytes[group] * len(rows) / self.group_rows[group]
                yield self.group_starts[group] + rows, size_bytes


class _Lane:
    """The rows of a lane in their order, taken a few at a time."""

    def __init__(self, pieces: Iterator[np.ndarray]) -> None:
        self._pieces = pieces
        self._ready = np.empty(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next rows, int64 [count]."""
        pieces = [self._ready]
        missing = count - len(self._ready)
        while missing > 0:
            pieces.append(next(self._pieces))
            missing -= len(pieces[-1])
        taken, self._ready = np.split(np.concatenate(pieces), [count])
        return taken

    def left(self) -> np.ndarray:
        """All rows that were not taken, int64."""
        return np.concatenate([self._ready, *self._pieces])


def _spread(
    parts: Iterator[tuple[np.ndarray, float]], spread_bytes: float, generator: np.random.Generator | None
) -> Iterator[np.ndarray]:
    """Yield rows by their keys: the place in bytes where their row group begins, and up to `spread_bytes` more."""
    rows, keys = np.empty(0, np.int64), np.empty(0)
    start_bytes = 0.0
    for more, size_bytes in parts:
        is_due = keys < start_bytes  # All rows that are still to come have larger keys.
        yield rows[is_due][np.argsort(keys[is_due], kind="stable")]
        own_keys = np.zeros(len(more)) if generator is None else generator.random(len(more)) * spread_bytes
        rows, keys = np.append(rows[~is_due], more), np.append(keys[~is_due], start_bytes + own_keys)
        start_bytes += size_bytes
    yield rows[np.argsort(keys, kind="stable")]


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
