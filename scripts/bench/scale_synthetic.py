"""Listings, manifests and kept rows of any size without any image, for `scripts.bench.scale`."""

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
from transfer.dataset.manifest import Shard
from transfer.dataset.plan import Images
from transfer.dataset.sources.base import Entry
from transfer.dataset.splits import SPLITS

IMAGE_BYTES = 100_000
CLASSES = 1000
SHARES = {"validation": 0.1, "test": 0.1}


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
    return [
        Shard(
            name=f"shards/{digest}.parquet",
            sha256=digest,
            split=SPLITS[max(0, number % 10 - 7)],
            rows=images_per_shard,
            size_bytes=images_per_shard * IMAGE_BYTES,
        )
        for number, digest in enumerate(digests)
    ]


class SyntheticRows:
    """What is kept of a shard, without the memory: the same zeros for every image."""

    def __init__(self, rows: int) -> None:
        self.shape = (1280,)
        self.labels = np.zeros(rows, np.int32)
        self._values = np.broadcast_to(np.zeros(self.shape, np.float32), (rows, *self.shape))

    def parts(self) -> list[np.ndarray]:
        """All rows, as `KeptRows` gives them."""
        return [self._values]


def configuration(storage: str) -> dict[str, Any]:
    return {
        "name": "scale",
        "storage": storage,
        "dataset": {"source": "nowhere"},
        "base": {"model": "MobileNetV2", "weights": "none", "image_size": 224},
        "phases": [{"unfreeze": 0, "epochs": 1, "learning_rate": 1e-3}],
    }
