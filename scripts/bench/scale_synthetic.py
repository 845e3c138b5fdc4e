"""Datasets of any size without any image, for `scripts.bench.scale`: listings, manifests, cached rows; and their wear.

Wear is what nights do to shards in the long run, by planning them one after the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.dataset.listing import CheckedColumns, Listing
from transfer.dataset.manifest import RowGroups, Shard
from transfer.dataset.row_groups import ROW_GROUP_SIZE_BYTES
from transfer.dataset.shard_plan import ShardPlan, plan_shards
from transfer.dataset.shards import Images, RecordedShard, unique_images
from transfer.dataset.sources.base import Entry
from transfer.dataset.splits import SPLITS, nothing_given

IMAGE_BYTES = 100_000
CLASSES = 1000
SHARES = {"validation": 0.1, "test": 0.1}
REMOVED = (0.0001, 0.01, 0.3)
GROWTH = 0.003
"""New images a night, as a share of those on the first."""


def known(images: int) -> tuple[Listing, CheckedColumns]:
    """A listing of distinct images, all accepted."""
    random = np.random.default_rng(0)
    numbers = np.arange(images)
    listed = Listing(
        keys=pa.chunked_array([keys_of(numbers[start : start + 10**6]) for start in range(0, images, 10**6)]),
        label_codes=(numbers % CLASSES).astype(np.int32),
        sizes_bytes=np.full(images, IMAGE_BYTES),
        marks=random.integers(1, 2**63, (images, 2), dtype=np.uint64),
        labels=[f"class-{number}" for number in range(CLASSES)],
        rejects=[],
        given=nothing_given(images),
    )
    checked = CheckedColumns()
    for column, values in (
        (checked.rows, numbers),
        (checked.widths, np.full(images, 500, np.int32)),
        (checked.heights, np.full(images, 375, np.int32)),
        (checked.sizes_bytes, listed.sizes_bytes),
    ):
        fill(column, values)
    checked.digests += random.bytes(32 * images)
    return listed, checked


def fill(column: array, values: np.ndarray) -> None:
    column.frombytes(values.tobytes())


def keys_of(numbers: np.ndarray) -> pa.Array:
    folders = pc.cast(pa.array(numbers % CLASSES), pa.string())
    names = pc.cast(pa.array(numbers), pa.string())
    return pc.binary_join_element_wise("class-", folders, "/", names, ".jpg", "")


def part_of(images: Images, chosen: np.ndarray) -> Images:
    columns = {field.name: getattr(images, field.name)[chosen] for field in dataclasses.fields(images)}
    return Images(**columns)


class SyntheticSource:
    """So many files, as a folder or a bucket lists them."""

    def __init__(self, count: int) -> None:
        self._count = count

    def entries(self) -> Iterator[Entry]:
        """All of them, made while they are listed."""
        for number in range(self._count):
            label = f"class-{number % CLASSES}"
            yield Entry(f"{label}/{number}.jpg", label, IMAGE_BYTES, f'"{number:032x}" 2026-11-21T00:00:00+00:00')


def shards_of(count: int, images_per_shard: int) -> list[Shard]:
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    a_group = -(-ROW_GROUP_SIZE_BYTES // IMAGE_BYTES)
    rows = [min(a_group, images_per_shard - start) for start in range(0, images_per_shard, a_group)]
    row_groups = RowGroups(rows=tuple(rows), footer_size_bytes=1, footer_sha256="0" * 64)
    return [
        Shard(
            name=f"shards/{digest}.parquet",
            sha256=digest,
            split=SPLITS[max(0, number % 10 - 7)],
            rows=images_per_shard,
            size_bytes=images_per_shard * IMAGE_BYTES,
            row_groups=row_groups,
        )
        for number, digest in enumerate(digests)
    ]


class SyntheticRows:
    """Cached features of a shard, without the memory: the same zeros for every image."""

    def __init__(self, rows: int) -> None:
        self.shape = (1280,)
        self.live = None
        self.labels = np.zeros(rows, np.int32)
        self._values = np.broadcast_to(np.zeros(self.shape, np.float32), (rows, *self.shape))

    def stored_parts(self) -> list[np.ndarray]:
        """All rows, as `CachedRows` gives them."""
        return [self._values]


def configuration(storage: str) -> dict[str, Any]:
    return {
        "name": "scale",
        "storage": storage,
        "dataset": {"source": "nowhere"},
        "base": {"model": "MobileNetV2", "weights": "none", "image_size": 224},
        "phases": [{"unfreeze": 0, "epochs": 1, "learning_rate": 1e-3}],
    }


def wear(*, shards: int, images_per_shard: int, nights: int) -> dict[str, Any]:
    """What is copied when images go, and shards that there are after many nights with few new images."""
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
        "copied": {str(share): _copied_without(first, parent, share, size_bytes) for share in REMOVED},
        "nights": _after(every, parent, images, added, nights, size_bytes),
    }


def _copied_without(images: Images, parent: list[RecordedShard], share: float, size_bytes: int) -> float:
    """Share of the images that are copied to other shards when a random share of all images goes."""
    stays = np.random.default_rng(0).random(len(images)) >= share
    plan = plan_shards(part_of(images, stays), parent, shard_size_bytes=size_bytes)
    return sum(len(new.images) for new in plan.new) / len(images)


def _after(
    every: Images, parent: list[RecordedShard], images: int, added: int, nights: int, size_bytes: int
) -> dict[str, Any]:
    before, copied = len(parent), 0
    for night in range(1, nights + 1):
        tonight = part_of(every, every.rows < images + night * added)
        plan = plan_shards(tonight, parent, shard_size_bytes=size_bytes)
        parent = _as_written(tonight, plan, parent)
        copied += sum(len(new.images) for new in plan.new if new.sources)
    fewest = len(plan_shards(every, [], shard_size_bytes=size_bytes).new)
    return {
        "nights": nights,
        "new_images_a_night": added,
        "shards_before": before,
        "shards_after": len(parent),
        "shards_if_written_at_once": fewest,
        "copied_an_added_image": copied / (nights * added),
    }


def _as_written(images: Images, plan: ShardPlan, parent: list[RecordedShard]) -> list[RecordedShard]:
    """The shards of the version that a plan makes. Nothing goes, so kept shards are as they were."""
    known_shards = {shard.shard.sha256: shard for shard in parent}
    written = []
    for new in plan.new:
        words = images.words[new.images]
        digest = hashlib.sha256(words.tobytes()).hexdigest()
        size = int(images.sizes_bytes[new.images].sum())
        shard = Shard(name=digest, sha256=digest, split=new.split, rows=len(words), size_bytes=size)
        written.append(RecordedShard(shard, words, images.labels[new.images], images.groups[new.images]))
    return [*(known_shards[shard.sha256] for shard in plan.kept), *written]
