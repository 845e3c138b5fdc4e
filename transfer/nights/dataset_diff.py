"""Difference between two dataset versions, image by image. Shards that both versions have are not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.dataset.classes import places_among
from transfer.dataset.index import read_images
from transfer.dataset.listing import bytes_of_column
from transfer.dataset.manifest import NOT_COUNTED, Dataset, Shard
from transfer.nights.summary import ClassChange, DataChange
from transfer.storage import Store


@dataclass(frozen=True, eq=False)
class NewRows:
    """A shard that the earlier version does not have, or with other rows removed.

    `labels`: int32 [rows]; `is_new`: bool [rows].
    """

    shard: Shard
    labels: np.ndarray
    is_new: np.ndarray


@dataclass(frozen=True, eq=False)
class Difference:
    """The images by which two versions differ. An image whose class changed is new and gone.

    `new`: the shards that only the later version has, in its order; no other shard has new images. `gone`: int64 [n],
    labels of the images that only the earlier version has, as indices into the names of `class_places`.
    """

    new: tuple[NewRows, ...]
    gone: np.ndarray


def data_change(store: Store, before: Dataset | None, now: Dataset, *, renames: Mapping[str, str]) -> DataChange:
    """Count how `now` differs from `before`; without `before` every image is new. `renames`, errors: as `compare`."""
    if before is None:
        totals = _totals(now)
        classes = [ClassChange(name=name, before=0, new=totals[name], gone=0) for name in now.classes]
        return _in_numbers(None, now, classes)
    difference = compare(store, before, now, renames=renames)
    names, places = class_places(before, now, renames=renames)
    new = np.zeros(len(names), np.int64)
    for rows in difference.new:
        new += np.bincount(rows.labels[rows.is_new], minlength=len(names))
    gone = np.bincount(difference.gone, minlength=len(names))
    counts = np.bincount(places, weights=[*_totals(before).values()], minlength=len(names))
    # In the same dataset a class disappears only if somebody dropped it or started over, which needs no warning.
    told = names[: len(now.classes)] if before.name == now.name else names
    classes = [
        ClassChange(name=name, before=int(counts[index]), new=int(new[index]), gone=int(gone[index]))
        for index, name in enumerate(told)
    ]
    return _in_numbers(before, now, classes)


def compare(store: Store, before: Dataset, now: Dataset, *, renames: Mapping[str, str]) -> Difference:
    """Find the images that only one of two versions has. Raises CorruptObjectError, ObjectNotFoundError, StorageError.

    Two images are the same if their bytes and their class are the same. A renamed class is the same class. `renames`:
    `{old: new}`, dataset.rename_classes.
    """
    names, places = class_places(before, now, renames=renames)
    here = _read(store, now, _only_in(now, before), np.arange(len(names)))
    there = _read(store, before, _only_in(before, now), np.array(places))
    keys_before = _joined(there)
    labels_before = np.concatenate([np.empty(0, np.int32), *(images.labels for images in there)])
    return Difference(
        new=tuple(NewRows(rows.shard, rows.labels, ~np.isin(rows.keys, keys_before)) for rows in here),
        gone=labels_before[~np.isin(keys_before, _joined(here))].astype(np.int64),
    )


def class_places(before: Dataset, now: Dataset, *, renames: Mapping[str, str]) -> tuple[list[str], list[int]]:
    """Names of the classes of both versions, those of `now` first, and for each class of `before` its index there."""
    names, places = list(now.classes), []
    found = places_among(before.classes, now.classes, same_indices=now.has_indices_of(before), renames=renames)
    for name, place in zip(before.classes, found, strict=True):
        places.append(len(names) if place is None else place)
        names += [name] if place is None else []
    return names, places


@dataclass(frozen=True, eq=False)
class _Images:
    """Images of a shard. `labels`: int32 [rows]; `keys`: 36 bytes [rows], digest and label concatenated."""

    shard: Shard
    labels: np.ndarray
    keys: np.ndarray


def _read(store: Store, dataset: Dataset, shards: Sequence[Shard], places: np.ndarray) -> list[_Images]:
    """Read what some shards of a version hold. `places`: int64 [classes of it], the new index of each label."""
    images = []
    for shard, table in zip(shards, read_images(store, dataset, ["sha256", "label"], shards), strict=True):
        labels = places[table["label"].to_numpy()].astype(np.int32)
        digests = np.frombuffer(bytes_of_column(table["sha256"]), np.uint8).reshape(-1, 32)
        keys = np.concatenate([digests, labels.astype(">i4").view(np.uint8).reshape(-1, 4)], axis=1)
        images.append(_Images(shard, labels, keys.view("S36")[:, 0]))
    return images


def _joined(images: Sequence[_Images]) -> np.ndarray:
    return np.concatenate([np.empty(0, "S36"), *(each.keys for each in images)])


def _only_in(dataset: Dataset, other: Dataset) -> list[Shard]:
    shared = {*other.shards}
    return [shard for shard in dataset.shards if shard not in shared]


def _totals(dataset: Dataset) -> dict[str, int]:
    """Images of each class over all splits."""
    return {name: sum(split[name] for split in dataset.counts.values()) for name in dataset.classes}


def _in_numbers(before: Dataset | None, now: Dataset, classes: list[ClassChange]) -> DataChange:
    known = {shard.name for shard in before.shards} if before else set()
    rejects = {reason: count for reason, count in now.reject_counts.items() if reason not in NOT_COUNTED}
    return DataChange(
        before=before.reference if before else None,
        now=now.reference,
        images=sum(shard.rows for shard in now.shards),
        new=sum(each.new for each in classes),
        gone=sum(each.gone for each in classes),
        shards=len(now.shards),
        new_shards=sum(shard.name not in known for shard in now.shards),
        rejected=sum(rejects.values()),
        rejects=rejects,
        ledger=now.rejects if rejects else None,
        classes=classes,
    )
