"""The order in which rows are visited, computed without reading them.

The order of an epoch is a pure function of (shards, seed, epoch), not of the number of workers. Shards are shuffled and
grouped into windows that fit in memory; the rows of each window are permuted. Every worker computes the same order and
takes its slice of each global batch, so 1 worker and 64 workers train on the same batches.

The two-level shuffle is the usual one for sharded data (compare mosaicml/streaming's `py1b`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard


@dataclass(frozen=True)
class Window:
    """Rows that are in memory together."""

    shards: tuple[Shard, ...]
    start: int
    """Position of the window's first row in the epoch."""
    order: np.ndarray
    """int64 [rows]: the k-th row visited is row `order[k]` of the window's shards, concatenated."""


@dataclass(frozen=True)
class WorkerSlice:
    """The part of each global batch that one worker takes."""

    index: int = 0
    count: int = 1

    def positions(self, batch_size: int) -> range:
        """Positions of this worker in a global batch of `batch_size` rows, which `count` divides."""
        share = batch_size // self.count
        return range(self.index * share, (self.index + 1) * share)


def windows(
    shards: Sequence[Shard], *, window_size_bytes: int | None, seed: int | None = None, epoch: int = 0
) -> Iterator[Window]:
    """Yield the windows of one epoch. `seed` None visits the rows as they are stored.

    Without `window_size_bytes` all shards are one window with one global permutation. Any window size that holds all
    shards gives the same order.
    """
    generator = None if seed is None else np.random.default_rng([seed, epoch])
    visited = list(shards) if generator is None else [shards[i] for i in generator.permutation(len(shards))]
    start = 0
    for group in _groups(visited, window_size_bytes):
        rows = sum(shard.rows for shard in group)
        order = np.arange(rows) if generator is None else generator.permutation(rows)
        yield Window(shards=tuple(group), start=start, order=order)
        start += rows


def _groups(shards: Sequence[Shard], size_bytes: int | None) -> Iterator[list[Shard]]:
    """Consecutive shards of together at most `size_bytes`, at least one each."""
    group: list[Shard] = []
    group_size_bytes = 0
    for shard in shards:
        if group and size_bytes is not None and group_size_bytes + shard.size_bytes > size_bytes:
            yield group
            group, group_size_bytes = [], 0
        group.append(shard)
        group_size_bytes += shard.size_bytes
    if group:
        yield group


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Number of batches in an epoch; the last one may be short."""
    return -(-rows // batch_size)
