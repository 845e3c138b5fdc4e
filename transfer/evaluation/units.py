"""The images of a split in units of work: consecutive shards, each of which is read once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa

from transfer.dataset.index import ImageIndex
from transfer.dataset.manifest import Shard
from transfer.dataset.row_groups import BinaryColumn, Footers
from transfer.dataset.shards import read_row_group, read_shard
from transfer.storage import Store

UNIT_SIZE_BYTES = 16 * 1024**2
"""Small shards are put together up to this size, because a unit has a cost of its own. A larger shard is one unit."""
INDEXED = ["key", "label", "sha256"]
"""What `UnitImages` takes from the index of a dataset version."""


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
    """Divide the shards of a split. The division depends on them alone, so it is the same for any number of actors."""
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
    """What is stored about the images of a unit, in stored order; `[row]` is an encoded image.

    `keys`, `digests` (SHA-256, hex): one for each of the n images. `labels`: int32 [n]. `whole`: the shards are read
    now, with all of that. Otherwise it is taken from `index`, that of the dataset version with the columns INDEXED, and
    the shards are read when an image is first asked for. Raises, also then, what reading a shard raises.
    """

    def __init__(self, store: Store, index: ImageIndex, unit: Unit, *, whole: bool) -> None:
        self._store, self._unit, self._whole = store, unit, whole
        if whole:
            self._table = self._read([*INDEXED, "image"])
            self.digests: list[str] = self._table["sha256"].to_pylist()
        else:
            self._table = pa.concat_tables(index.tables(unit.shards))
            self.digests = [digest.hex() for digest in self._table["sha256"].to_pylist()]
        self.keys: list[str] = self._table["key"].to_pylist()
        self.labels: np.ndarray = self._table["label"].to_numpy().astype(np.int32)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> bytes:
        return self._encoded[row]

    def __iter__(self) -> Iterator[bytes]:
        return (self[row] for row in range(len(self)))

    def pictures(self, digests: Iterable[str]) -> dict[str, Picture]:
        """Images by their digests: where they are stored, with the image itself if the shards were read.

        Keys would not tell them apart: after files were renamed, two images of a version can have the same one.
        """
        ends = list(accumulate((shard.rows for shard in self._unit.shards), initial=0))
        found = {}
        for digest in digests:
            row = self.digests.index(digest)
            shard = bisect_right(ends, row) - 1
            found[digest] = Picture(self._unit.shards[shard], row - ends[shard], self[row] if self._whole else None)
        return found

    @cached_property
    def _encoded(self) -> BinaryColumn:
        return BinaryColumn((self._table if self._whole else self._read(["image"]))["image"])

    def _read(self, columns: list[str]) -> pa.Table:
        return pa.concat_tables([read_shard(self._store, shard, columns=columns) for shard in self._unit.shards])


@dataclass(frozen=True)
class Picture:
    """An image that is to be shown: row `row` of a shard. `encoded`: None if it was not read yet."""

    shard: Shard
    row: int
    encoded: bytes | None

    def read(self, store: Store) -> bytes:
        """The encoded image; of its shard no more than its row group is read. Raises what reading that raises."""
        if self.encoded is not None:
            return self.encoded
        starts = list(accumulate(self.shard.rows_of_groups, initial=0))
        group = bisect_right(starts, self.row) - 1
        table = read_row_group(store, self.shard, group, columns=["image"], footers=Footers())
        encoded: bytes = table["image"][self.row - starts[group]].as_py()
        return encoded


def first_images(store: Store, shards: Sequence[Shard], count: int) -> list[bytes]:
    """Read the first `count` encoded images of a split, in stored order, and few more. Raises as `Picture.read`."""
    images: list[bytes] = []
    for shard in shards:
        footers = Footers()
        for group in range(len(shard.rows_of_groups)):
            if len(images) >= count:
                return images
            table = read_row_group(store, shard, group, columns=["image"], footers=footers)
            images += table["image"].slice(0, count - len(images)).to_pylist()
    return images
