"""Some of many images, always the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard

MAX_SHARDS = 64
"""That are opened for a sample: opening one may mean fetching it."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Some rows of a shard: int64 [n], ascending."""

    shard: Shard
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def sample(groups: Iterable[ShardRows], most: int) -> list[ShardRows]:
    """Of these rows `most`, or all of them if they are fewer, from `MAX_SHARDS` shards at most; none without rows.

    Digests decide: which shards, by their own, and which rows, since those of a shard are sorted by their images'. So
    class, name and age have no part in it. Each shard gives the same share of its rows.
    """
    shards = sorted((rows for rows in groups if len(rows)), key=lambda rows: rows.shard.sha256)[:MAX_SHARDS]
    ends = np.cumsum([len(rows) for rows in shards], dtype=np.int64)
    if not len(ends) or ends[-1] <= most:
        return shards
    counts = np.diff(ends * most // ends[-1], prepend=0)
    chosen = [ShardRows(rows.shard, rows.rows[:count]) for rows, count in zip(shards, counts, strict=True)]
    return [rows for rows in chosen if len(rows)]
