"""The plan of a version's shards: which shards of the parent version stay, and which are written.

**Kept.** A shard of the parent stays as long as it has images that the new version has with the same label, group and
split. Its other rows are noted as removed, and no reader sees them. Only if they are more than `MAX_REMOVED` of its
rows, the shard is given up, and what is left of it is copied.

**Compaction.** A shard is *small* while it is smaller than `dataset.shard_size_bytes`. A split has at most `MAX_SMALL`
of them: when tonight's images would make one more, the smallest ones are put together, and with them every next one
that is at most `TIER` times as large as all of those before. So sizes form tiers, as in log-structured storage, and an
image is copied once a tier, about as often as a number has digits, not every night.

**Copied or new.** A written shard either has only images that were stored before, which are copied out of their shards,
or only images from the source. So the cached features of copied images can be copied, too, for all rows.

Nothing is written for its own sake: where no image is new, gone or changed, every shard stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.dataset.listing import find_words
from transfer.dataset.manifest import Shard
from transfer.dataset.shards import Images, RecordedShard
from transfer.dataset.splits import SPLITS

MAX_REMOVED = 0.25
"""Share of a shard's stored rows that may be removed from it. Readers fetch removed rows, too."""
MAX_SMALL = 5
"""Small shards of a split. One ingest leaves one, so three splits have at most 12 more."""
TIER = 3
"""With 2 to 4, a year of nights copies an image about as often; with 1, twice as often."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: the indices of its images in `Images`, ascending, and where their bytes are copied from.

    `sources`: stored shards; empty if the images come from the source. `origins`: int64 [n, 2], for each image the
    index in `sources` and the row there.
    """

    split: str
    images: np.ndarray
    sources: tuple[Shard, ...]
    origins: np.ndarray


@dataclass(frozen=True)
class ShardPlan:
    """Shards that stay, perhaps with more removed rows than before, and shards to be written."""

    kept: list[Shard]
    new: list[PlannedShard]

    def leaves_as_it_is(self, shards: Sequence[Shard]) -> bool:
        """Whether the plan is to keep exactly these shards."""
        return not self.new and self.kept == list(shards)


def plan_shards(
    images: Images, parent: Sequence[RecordedShard], *, shard_size_bytes: int, same_columns: bool = True
) -> ShardPlan:
    """Decide which shards stay and which are written. A shard is closed when its images reach `shard_size_bytes`.

    `same_columns`: whether shards of the parent have the columns of the new version. If not, none of them stays.
    """
    found = _Found(images, parent, same_columns=same_columns)
    if found.is_all():
        return ShardPlan(found.kept(), [])
    new = []
    for index, split in enumerate(SPLITS):
        is_written = (images.splits == index) & (found.holders < 0)
        added = np.flatnonzero(is_written & (found.origins[:, 0] < 0))
        pieces = list(_cut(added, images.sizes_bytes, shard_size_bytes))
        rest_bytes = int(images.sizes_bytes[pieces[-1]].sum()) if pieces else shard_size_bytes
        found.give_up_small(split, shard_size_bytes, room=MAX_SMALL - (rest_bytes < shard_size_bytes))
        copied = np.flatnonzero((images.splits == index) & (found.holders < 0) & (found.origins[:, 0] >= 0))
        # Shard by shard, so that each is read for two pieces at most, however many there are.
        copied = copied[np.argsort(found.origins[copied, 0], kind="stable")]
        copies = _cut(copied, images.sizes_bytes, shard_size_bytes)
        new += [_copied(split, np.sort(piece), found, parent) for piece in copies]
        new += [PlannedShard(split, piece, (), np.empty((0, 2), np.int64)) for piece in pieces]
    return ShardPlan(found.kept(), new)


class _Found:
    """Where the images are in the parent's shards.

    `holders`: int32 [n], the index of the shard that stays and has the image, -1 if none has. `origins`: int32 [n, 2],
    shard and row from which the image can be copied, in shards that do not stay; -1 if there are none.
    """

    def __init__(self, images: Images, parent: Sequence[RecordedShard], *, same_columns: bool) -> None:
        self._images = images
        self._parent = parent
        self._kept: dict[int, Shard] = {}
        self.holders = np.full(len(images), -1, np.int32)
        self.origins = np.full((len(images), 2), -1, np.int32)
        for index, shard in enumerate(parent):
            # A false miss (two digests sharing 64 bits) is harmless: the image is written once more.
            places = find_words(images.words, shard.words)
            fits = places >= 0
            fits[fits] = _fits(images, places[fits], shard, fits)
            stays = shard.shard if fits.all() else shard.shard.without(shard.rows[~fits])
            if same_columns and fits.any() and len(stays.removed) <= MAX_REMOVED * stays.stored_rows:
                self._kept[index] = stays
                self.holders[places[fits]] = index
            else:
                self._note_origins(index, places)

    def is_all(self) -> bool:
        """Whether every image is in a shard that stays, and every shard stays with all of its images."""
        return bool((self.holders >= 0).all()) and self.kept() == [each.shard for each in self._parent]

    def kept(self) -> list[Shard]:
        """The shards that stay, in the parent's order."""
        return [self._kept[index] for index in sorted(self._kept)]

    def give_up_small(self, split: str, shard_size_bytes: int, *, room: int) -> None:
        """If more than `room` small shards of a split would stay or be copied, give up the smallest ones."""
        is_held = self.holders >= 0
        sizes = np.bincount(self.holders[is_held], self._images.sizes_bytes[is_held], minlength=len(self._parent))
        small = [i for i, each in self._kept.items() if each.split == split and each.size_bytes < shard_size_bytes]
        small.sort(key=lambda index: (sizes[index], index))
        is_copied = (self._images.splits == SPLITS.index(split)) & ~is_held & (self.origins[:, 0] >= 0)
        copied_bytes = self._images.sizes_bytes[is_copied].sum()
        if len(small) + (copied_bytes > 0) <= room:
            return
        while small and (len(small) + (copied_bytes > 0) > room or sizes[small[0]] <= TIER * copied_bytes):
            index = small.pop(0)
            copied_bytes += sizes[index]
            places = find_words(self._images.words, self._parent[index].words)
            # Not of the rows that were removed from it tonight: their images come from the source.
            places[self.holders[places] != index] = -1
            self._note_origins(index, places)
            self.holders[places[places >= 0]] = -1
            del self._kept[index]

    def _note_origins(self, index: int, places: np.ndarray) -> None:
        """`places`: int64 [rows of the shard], where its images are; -1 for those that are not to be copied."""
        found = places >= 0
        self.origins[places[found], 0] = index
        self.origins[places[found], 1] = self._parent[index].rows[found]


def _fits(images: Images, places: np.ndarray, shard: RecordedShard, rows: np.ndarray) -> np.ndarray:
    same_labels = images.labels[places] == shard.labels[rows]
    same_groups = images.groups[places] == shard.groups[rows]
    fits: np.ndarray = same_labels & same_groups & (images.splits[places] == SPLITS.index(shard.shard.split))
    return fits


def _copied(split: str, places: np.ndarray, found: _Found, parent: Sequence[RecordedShard]) -> PlannedShard:
    indices, order = np.unique(found.origins[places, 0], return_inverse=True)
    origins = np.stack([order, found.origins[places, 1]], axis=1)
    return PlannedShard(split, places, tuple(parent[index].shard for index in indices), origins)


@dataclass(frozen=True)
class CopiedShard:
    """A shard that was written with images of stored shards alone: where they come from, and their labels now.

    `origins`: int64 [rows, 2], for each row the index in `sources` and the row there. `labels`: int32 [rows].
    """

    shard: Shard
    sources: tuple[Shard, ...]
    origins: np.ndarray
    labels: np.ndarray


OnCopied = Callable[[Sequence[CopiedShard]], object]
"""Called with the shards that were copied from others, before the version that has them is added, and once more after
it: until then nothing says that what belongs to them is in use."""


def moved_images(images: Images, parent: Sequence[RecordedShard]) -> dict[tuple[str, str], np.ndarray]:
    """Images whose split differs from that in the parent version: indices in `Images`, by both splits."""
    moved: dict[tuple[str, str], list[np.ndarray]] = {}
    for shard in parent:
        places = find_words(images.words, shard.words)
        places = places[places >= 0]
        for index, split in enumerate(SPLITS):
            here = places[images.splits[places] == index]
            if split != shard.shard.split and len(here):
                moved.setdefault((shard.shard.split, split), []).append(here)
    return {change: np.concatenate(places) for change, places in moved.items()}


def _cut(places: np.ndarray, sizes_bytes: np.ndarray, shard_size_bytes: int) -> Iterator[np.ndarray]:
    ends_bytes = np.cumsum(sizes_bytes[places])
    start = size_bytes = 0
    while start < len(places):
        # The first image with which the shard reaches its size is its last one.
        stop = min(int(np.searchsorted(ends_bytes, size_bytes + shard_size_bytes)) + 1, len(places))
        yield places[start:stop]
        start, size_bytes = stop, int(ends_bytes[stop - 1])
