"""What nights do to shards in the long run, by planning them one after the other: none are ever put together again."""

from __future__ import annotations

from typing import Any

import numpy as np

from scripts.bench.scale_synthetic import IMAGE_BYTES, SHARES, known, part_of
from transfer.dataset.manifest import Shard
from transfer.dataset.plan import Images, ParentShard, Plan, plan_shards, unique_images

REMOVED = (0.0001, 0.001, 0.01)
GROWTH = 0.001
"""New images a night, as a share of those on the first."""


def measure(*, shards: int, images_per_shard: int, nights: int) -> dict[str, Any]:
    """Shards that are written anew when images go, and shards that there are after many nights with few new images."""
    images = shards * images_per_shard
    added = max(int(images * GROWTH), 1)
    listed, checked = known(images + nights * added)
    every, _ = unique_images(listed, checked, np.zeros(len(listed.labels), np.int32), **SHARES)
    size_bytes = images_per_shard * IMAGE_BYTES
    first = part_of(every, every.rows < images)
    parent = _as_written(first, plan_shards(first, [], shard_size_bytes=size_bytes), [])
    return {
        "shards": len(parent),
        "images_per_shard": images_per_shard,
        "rewritten": {str(share): _rewritten(first, parent, share, size_bytes) for share in REMOVED},
        "nights": _after(every, parent, images, added, nights, size_bytes),
    }


def _rewritten(images: Images, parent: list[ParentShard], share: float, size_bytes: int) -> float:
    """Share of the shards that do not stay when a random share of the images goes."""
    stays = np.random.default_rng(0).random(len(images)) >= share
    return 1 - len(plan_shards(part_of(images, stays), parent, shard_size_bytes=size_bytes).kept) / len(parent)


def _after(
    every: Images, parent: list[ParentShard], images: int, added: int, nights: int, size_bytes: int
) -> dict[str, Any]:
    before = len(parent)
    for night in range(1, nights + 1):
        tonight = part_of(every, every.rows < images + night * added)
        parent = _as_written(tonight, plan_shards(tonight, parent, shard_size_bytes=size_bytes), parent)
    fewest = len(plan_shards(every, [], shard_size_bytes=size_bytes).new)
    rows = sorted(len(shard.words) for shard in parent)
    return {
        "nights": nights,
        "new_images_a_night": added,
        "shards_before": before,
        "shards_after": len(parent),
        "shards_if_written_at_once": fewest,
        "median_images_of_a_shard": rows[len(rows) // 2],
    }


def _as_written(images: Images, plan: Plan, parent: list[ParentShard]) -> list[ParentShard]:
    """The shards of the version that a plan makes."""
    known_shards = {shard.shard.sha256: shard for shard in parent}
    written = []
    for new in plan.new:
        words = images.words[new.images]
        shard = Shard(name="", sha256=words.tobytes().hex(), split=new.split, rows=len(words), size_bytes=1)
        written.append(ParentShard(shard, words, images.labels[new.images]))
    return [*(known_shards[shard.sha256] for shard in plan.kept), *written]
