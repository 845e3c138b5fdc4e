"""Which images become which shards: a pure function of what is known about them, without any image.

Byte-identical images with one label are kept once, the first in the source's order; with several labels all of them
are refused, since nobody can say which is right. A shard of the parent version stays if every row of it is still wanted
with that label in that split. All other images go to new shards, sorted by digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from transfer.dataset.listing import CheckedColumns, Listing, find_words
from transfer.dataset.manifest import Shard
from transfer.dataset.rejects import CONFLICTING_LABELS, DUPLICATE, Reject
from transfer.dataset.splits import SPLITS, split_indices


@dataclass(frozen=True)
class Images:
    """Accepted images, each once, sorted by digest."""

    rows: np.ndarray
    """int64 [n]: each image's row in the listing."""
    words: np.ndarray
    """uint64 [n, 4]: each image's SHA-256, as numbers that sort like it."""
    labels: np.ndarray
    """int32 [n]: class index."""
    splits: np.ndarray
    """int8 [n]: index into SPLITS."""
    widths: np.ndarray
    heights: np.ndarray
    sizes_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self, classes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Images of each split and class."""
        table = np.zeros((len(SPLITS), len(classes)), np.int64)
        np.add.at(table, (self.splits, self.labels), 1)
        return {split: dict(zip(classes, map(int, row), strict=True)) for split, row in zip(SPLITS, table, strict=True)}


@dataclass(frozen=True)
class ParentShard:
    """What a shard of the parent version holds: `words` uint64 [n, 4] and `labels` int32 [n]."""

    shard: Shard
    words: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: the places of its images in `Images`."""

    split: str
    images: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Shards that stay and shards to be written."""

    kept: list[Shard]
    new: list[PlannedShard]

    def leaves_as_it_is(self, shards: Sequence[Shard]) -> bool:
        """Whether these shards are all there is to be."""
        return not self.new and self.kept == list(shards)


def unique_images(
    listing: Listing,
    checked: CheckedColumns,
    label_indices: np.ndarray,
    *,
    validation: float,
    test: float,
) -> tuple[Images, list[Reject]]:
    """Keep each image once and give it its split; returns what was left out, too.

    `label_indices` int32 [labels of the listing] gives each label's class index.
    """
    words = checked.words()
    rows = np.array(checked.rows, np.int64)
    labels = label_indices[listing.label_codes[rows]]
    # Rows last, so that copies stay in the source's order.
    order = np.lexsort((rows, *words.T[::-1]))
    first_of_group, group = _groups(words[order])
    is_conflict = _has_several(labels[order], first_of_group)[group]
    is_first = np.zeros(len(order), bool)
    is_first[first_of_group] = True

    rejects = list(_duplicates(listing, rows[order], first_of_group[group], ~is_first & ~is_conflict))
    rejects += _conflicts(listing, rows[order][is_conflict], group[is_conflict])
    kept = order[is_first & ~is_conflict]
    return (
        Images(
            rows=rows[kept],
            words=words[kept],
            labels=labels[kept],
            splits=split_indices(words[kept, 0], validation=validation, test=test),
            widths=np.array(checked.widths, np.int32)[kept],
            heights=np.array(checked.heights, np.int32)[kept],
            sizes_bytes=np.array(checked.sizes_bytes, np.int64)[kept],
        ),
        rejects,
    )


def _groups(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find equal neighbors: the place where each group starts, and the group of each place."""
    starts = np.ones(len(words), bool)
    starts[1:] = (words[1:] != words[:-1]).any(axis=1)
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def _has_several(labels: np.ndarray, first_of_group: np.ndarray) -> np.ndarray:
    if not len(labels):
        return np.zeros(0, bool)
    smallest = np.minimum.reduceat(labels, first_of_group)
    several: np.ndarray = smallest != np.maximum.reduceat(labels, first_of_group)
    return several


def _duplicates(
    listing: Listing, rows: np.ndarray, first_places: np.ndarray, is_duplicate: np.ndarray
) -> Iterator[Reject]:
    for place in np.flatnonzero(is_duplicate):
        first_key = listing.key(int(rows[first_places[place]]))
        key = listing.key(int(rows[place]))
        yield Reject(key, DUPLICATE, f"the same bytes as {first_key}, which is kept")


def _conflicts(listing: Listing, rows: np.ndarray, group: np.ndarray) -> Iterator[Reject]:
    """Refuse all images of groups with several labels; `rows` are sorted by group."""
    for start, stop in pairwise([*np.flatnonzero(np.diff(group, prepend=-1)), len(group)]):
        copies = rows[start:stop]
        codes = listing.label_codes[copies]
        one, other = copies[codes.argmin()], copies[codes.argmax()]
        for row, code in zip(copies, codes, strict=True):
            contrary = int(one if code != codes.min() else other)
            yield Reject(
                listing.key(int(row)),
                CONFLICTING_LABELS,
                f"labeled {listing.labels[code]}; {listing.key(contrary)} has the same bytes and is labeled "
                f"{listing.labels[listing.label_codes[contrary]]}",
            )


def plan_shards(images: Images, parent: Sequence[ParentShard], *, shard_size_bytes: int) -> Plan:
    """Decide which shards stay and which are written. A shard is closed when its images reach `shard_size_bytes`."""
    is_covered = np.zeros(len(images), bool)
    kept = []
    for shard in parent:
        # An image that is not found although it is there only costs writing a shard anew.
        places = find_words(images.words, shard.words)
        if (places >= 0).all() and _fits(images, places, shard):
            is_covered[places] = True
            kept.append(shard.shard)
    new = []
    for index, split in enumerate(SPLITS):
        missing = np.flatnonzero(~is_covered & (images.splits == index))
        new += [PlannedShard(split, piece) for piece in _cut(missing, images.sizes_bytes, shard_size_bytes)]
    return Plan(kept, new)


def _fits(images: Images, places: np.ndarray, shard: ParentShard) -> bool:
    split = SPLITS.index(shard.shard.split)
    return bool((images.labels[places] == shard.labels).all() and (images.splits[places] == split).all())


def _cut(places: np.ndarray, sizes_bytes: np.ndarray, shard_size_bytes: int) -> Iterator[np.ndarray]:
    ends_bytes = np.cumsum(sizes_bytes[places])
    start = size_bytes = 0
    while start < len(places):
        # The first image with which the shard reaches its size is its last one.
        stop = min(int(np.searchsorted(ends_bytes, size_bytes + shard_size_bytes)) + 1, len(places))
        yield places[start:stop]
        start, size_bytes = stop, int(ends_bytes[stop - 1])
