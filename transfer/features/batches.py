"""Cached features → batches, many steps at a time, in the order in which images would have come.

The order of an epoch is one global permutation by (seed, epoch) over all rows: any row of a memory-mapped file is as
near as any other. For a whole split it is the order of `dataset/batches.py` whenever it fits into the shuffle window
there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transfer.dataset.batches import WorkerSlice, steps_per_epoch, windows
from transfer.dataset.manifest import Shard
from transfer.features.store import CachedRows

CHUNK_SIZE_BYTES = 32 * 1024**2
"""Features that are copied out of the maps at a time, for all the steps that they last."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive batches of one epoch as one worker sees them, of which the first `steps` hold data.

    `features`: [capacity, rows, *shape]. `labels`: int32 [capacity, rows]. `real`: float32 [capacity, rows], 0 for a
    row that only fills up an epoch's last batch. `positions`: int32 [rows], each row's place in the global batch.
    `real_images`: float32 [capacity], images of the dataset in each global batch. Every chunk of an epoch has the same
    capacity, so that a compiled program fits all of them.
    """

    features: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    positions: np.ndarray
    real_images: np.ndarray
    steps: int


def side_by_side(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of several streams as one: features, labels and real [capacity, streams, rows, …]."""

    def stacked(*arrays: np.ndarray) -> np.ndarray:
        return np.stack(arrays, axis=1)

    return replace(
        chunks[0],
        features=stacked(*(chunk.features for chunk in chunks)),
        labels=stacked(*(chunk.labels for chunk in chunks)),
        real=stacked(*(chunk.real for chunk in chunks)),
    )


class CachedSplit:
    """The cached features of all images of a split as one long array, which is never in memory as a whole.

    `shards` and `rows` belong together, in the same order. `only`: int64 [n], if given, which of all their rows count.
    """

    def __init__(self, shards: Sequence[Shard], rows: Sequence[CachedRows], *, only: np.ndarray | None = None) -> None:
        self._shards = list(shards)
        self._only = only
        self.shape = rows[0].shape
        self._parts = [part for each in rows for part in each.parts()]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        labels = np.concatenate([each.labels for each in rows])
        self.labels = labels if only is None else labels[only]
        self.dtype = self._parts[0].dtype
        self.row_bytes = self._parts[0][0].nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows (int64 [n], counted over all that are there) into `out` [n, *shape], in the order given."""
        rows = rows if self._only is None else self._only[rows]
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        by_part = np.argsort(part_of, kind="stable")
        edges = np.flatnonzero(np.diff(part_of[by_part], prepend=-1, append=-1))
        for start, end in itertools.pairwise(edges):
            places = by_part[start:end]
            part = part_of[places[0]]
            out[places] = self._parts[part][rows[places] - self._starts[part]]

    def order(self, *, seed: int | None, epoch: int) -> np.ndarray:
        """Rows, int64 [rows], in the order in which an epoch visits them; `seed` None: as they are stored."""
        if self._only is not None:
            return np.arange(len(self)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))
        (window,) = windows(self._shards, window_size_bytes=None, seed=seed, epoch=epoch)
        starts = dict(zip((shard.sha256 for shard in self._shards), _starts(self._shards), strict=True))
        visited: np.ndarray = np.concatenate([starts[shard.sha256] + np.arange(shard.rows) for shard in window.shards])
        return np.take(visited, window.order)


class CachedBatches:
    """The batches of some epochs, one after the other, as one worker sees them.

    `epochs` yields for each epoch its number, which decides the order, and the features of the view to train on.
    `seed` None keeps the stored order. `start_step` leaves out the batches of the first epoch before it. `streams`: so
    many share the room for a chunk.
    """

    def __init__(
        self,
        epochs: Iterable[tuple[int, CachedSplit]],
        *,
        batch_size: int,
        worker: WorkerSlice | None = None,
        seed: int | None = None,
        start_step: int = 0,
        max_steps: int,
        streams: int = 1,
    ) -> None:
        self._epochs = iter(epochs)
        self._batch_size = batch_size
        self._own = (worker or WorkerSlice()).positions(batch_size)
        self._seed = seed
        self._step = start_step
        self._max_steps = max_steps
        self._room = CHUNK_SIZE_BYTES // streams
        self._split: CachedSplit | None = None
        self._order = np.empty(0, np.int64)

    def next_chunk(self, limit: int) -> Chunk:
        """The next batches of the present epoch, or of the next one after its end; at most `limit` steps."""
        if self._split is None:
            epoch, self._split = next(self._epochs)
            self._order = self._split.order(seed=self._seed, epoch=epoch)
        split = self._split
        epoch_steps = steps_per_epoch(len(split), self._batch_size)
        capacity = min(max(self._room // (len(self._own) * split.row_bytes), 1), self._max_steps, epoch_steps)
        steps = min(capacity, limit, epoch_steps - self._step)
        chunk = self._chunk(split, range(self._step, self._step + steps), capacity)
        self._step += steps
        if self._step == epoch_steps:
            self._step, self._split = 0, None
        return chunk

    def _chunk(self, split: CachedSplit, steps: range, capacity: int) -> Chunk:
        own = np.array(self._own)
        places = np.array(steps)[:, None] * self._batch_size + own
        is_real = places < len(split)
        features = np.zeros((capacity, len(own), *split.shape), split.dtype)
        labels = np.zeros((capacity, len(own)), np.int32)
        real = np.zeros((capacity, len(own)), np.float32)
        rows = self._order[places[is_real]]
        # Only an epoch's last batch is short, so the real rows come first.
        split.take(rows, features.reshape(-1, *split.shape)[: len(rows)])
        labels.reshape(-1)[: len(rows)] = split.labels[rows]
        real[: len(steps)] = is_real
        real_images = np.ones(capacity, np.float32)
        real_images[: len(steps)] = np.minimum(self._batch_size, len(split) - np.array(steps) * self._batch_size)
        return Chunk(features, labels, real, own.astype(np.int32), real_images, len(steps))


def _starts(shards: Sequence[Shard]) -> np.ndarray:
    return np.cumsum([0, *(shard.rows for shard in shards)])[:-1]
