"""Cached features of copied images: copied row by row, so that no image goes through the frozen part again.

Where an ingest copies images out of stored shards into a new one, the features of the old shards are those of the new
one in another order. Nothing here needs the network: a frozen part's folder says what its features look like.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from transfer.catalog import layout
from transfer.dataset.shard_plan import CopiedShard
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.features.layout import read_description
from transfer.features.store import FeatureStore
from transfer.storage import Store

logger = logging.getLogger(__name__)
AT_ONCE = 4
"""Shards whose features are copied at the same time, each with a record batch in memory."""


@dataclass(frozen=True)
class DescribedPart:
    """A frozen part as the folder of its cached features describes it, without its network."""

    digest: str
    description: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one image."""
        return tuple(self.description["shape"])

    @property
    def dtype(self) -> Literal["float32", "float16"]:
        """Type in the cache."""
        return "float16" if self.description["dtype"] == "float16" else "float32"


def copy_features(store: Store, copied: Sequence[CopiedShard]) -> int:
    """Cache the features of copied shards, for each frozen part for which all of their sources have some.

    Features that are cached already are left as they are. Those of augmented views are not copied: how an image looks
    in a view depends on its shard, too. Returns how many shards' features were copied, counted once for each frozen
    part. Raises StorageError.
    """
    if not copied:
        return 0
    parts = [FeatureStore(store, part) for part in _described_parts(store)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = sum(pool.map(lambda each: _copy(*each), [(part, shard) for part in parts for shard in copied]))
    if done:
        logger.info("Cached features of %d shards copied instead of computed.", done)
    return done


def _described_parts(store: Store) -> Iterator[DescribedPart]:
    for digest in store.folders(layout.FEATURES):
        description = read_description(store, digest)
        if {"shape", "dtype"} <= description.keys() and not description.get("view"):
            yield DescribedPart(digest, description)


def _copy(features: FeatureStore, copied: CopiedShard) -> bool:
    """Whether the features of a shard were copied; not if it has some, or if a source has none that are intact."""
    if features.has(copied.shard) or not all(features.has(source) for source in copied.sources):
        return False
    try:
        sources = [features.open(source.whole) for source in copied.sources]
    except (CorruptObjectError, ObjectNotFoundError):
        return False
    # Rows are counted over all sources, and lie in parts that are mapped, not read.
    first = np.cumsum([0, *map(len, sources)])
    rows = first[copied.origins[:, 0]] + copied.origins[:, 1]
    parts = [part for each in sources for part in each.stored_parts()]
    starts = np.cumsum([0, *map(len, parts)])
    part_of = np.searchsorted(starts, rows, side="right") - 1
    with features.writer(copied.shard) as writer:
        for row, part, label in zip(rows, part_of, copied.labels, strict=True):
            place = row - starts[part]
            writer.append(parts[part][place : place + 1], label[np.newaxis])
    return True
