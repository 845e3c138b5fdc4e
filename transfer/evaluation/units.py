"""The images of a split in units of work: consecutive shards, each of which is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from transfer.dataset.manifest import Shard
from transfer.dataset.shards import read_columns, read_shard
from transfer.storage import Store

if TYPE_CHECKING:
    from transfer.dataset.batches import BinaryColumn

UNIT_SIZE_BYTES = 16 * 1024**2
"""Small shards are put together up to this size, because a unit has a cost of its own. A larger shard is one unit."""
_COLUMNS = ["key", "label", "sha256"]


@dataclass(frozen=True)
class Unit:
    """Consecutive shards of a split, unit `number` of `count`. `start`: row of their first image in the split."""

    number: int
    count: int
    start: int
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Number of images."""
        return sum(shard.rows for shard in self.shards)


def units_of(shards: Sequence[Shard]) -> list[Unit]:
    """Divide the shards of a split. The division depends on nothing else, so it is the same for any number of actors."""
    groups = list(_groups(shards))
    starts = accumulate((sum(shard.rows for shard in group) for group in groups), initial=0)
    return [
        Unit(number, len(groups), start, tuple(group))
        for number, (group, start) in enumerate(zip(groups, starts, strict=False))
    ]


def _groups(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    size_bytes = 0
    for shard in shards:
        if group and size_bytes + shard.size_bytes > UNIT_SIZE_BYTES:
            yield group
            group, size_bytes = [], 0
        group.append(shard)
        size_bytes += shard.size_bytes
    if group:
        yield group


class UnitImages:
    """What shards have about the images of a unit, in stored order; `[row]` is an encoded image.

    `keys`, `digests` (SHA-256, hex): one for each of the n images. `labels`: int32 [n]. `whole`: read the images at
    once with everything else; otherwise they are read when one is first asked for. Raises, also then, what reading a
    shard raises.
    """

    def __init__(self, store: Store, unit: Unit, *, whole: bool) -> None:
        self._store, self._unit, self._whole = store, unit, whole
        read = read_shard if whole else read_columns
        columns = [*_COLUMNS, "image"] if whole else _COLUMNS
        self._table = pa.concat_tables([read(store, shard, columns=columns) for shard in unit.shards])
        self.keys: list[str] = self._table["key"].to_pylist()
        self.digests: list[str] = self._table["sha256"].to_pylist()
        self.labels: np.ndarray = self._table["label"].to_numpy().astype(np.int32)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> bytes:
        return self._encoded[row]

    def __iter__(self) -> Iterator[bytes]:
        return (self[row] for row in range(len(self)))

    @cached_property
    def _encoded(self) -> BinaryColumn:
        # Imported late: it loads TensorFlow, which a driver does without.
        from transfer.dataset.batches import BinaryColumn

        if self._whole:
            return BinaryColumn(self._table["image"])
        tables = [read_shard(self._store, shard, columns=["image"]) for shard in self._unit.shards]
        return BinaryColumn(pa.concat_tables(tables)["image"])

    def pictures(self, keys: set[str]) -> dict[str, bytes]:
        """The encoded images with these keys; none if the images were not read."""
        return {key: self[row] for row, key in enumerate(self.keys) if key in keys} if self._whole else {}


def images_with(store: Store, shards: Sequence[Shard], keys: set[str]) -> dict[str, bytes]:
    """Find some images of `shards` by their keys: their encoded bytes. Raises what reading a shard raises."""
    found: dict[str, bytes] = {}
    for shard in shards:
        table = read_shard(store, shard, columns=["key", "image"])
        rows = [row for row, key in enumerate(table["key"].to_pylist()) if key in keys]
        found.update((table["key"][row].as_py(), table["image"][row].as_py()) for row in rows)
    return found
