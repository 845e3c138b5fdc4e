"""The images that a run trains on and is validated on, and how much each class weighs in the loss.

They are the training and the validation split, or for cross-validation parts of both together, the folds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transfer.dataset.index import read_images
from transfer.dataset.manifest import Dataset
from transfer.errors import ConfigError
from transfer.storage import Store

FOLDED_SPLITS = ("train", "validation")
"""The splits whose images are divided into folds. Rows are counted over the shards of one split, then of the other."""


@dataclass(frozen=True)
class Fold:
    """One of `count` parts of the images: the run validates on it and trains on the others. `index` counts from 0.

    The sizes of the parts differ by one image at most. If images are in groups, all images of a group are in one part,
    and the sizes are as equal as that allows.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"fold{self.index + 1}of{self.count}"

    def rows(self, store: Store, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the images to train on, and of those to validate on: int64, ascending, counted over `FOLDED_SPLITS`.

        They depend only on the number of images, their groups and the number of folds, so all runs on a dataset version
        have the same folds. Raises ConfigError if there are fewer images or groups than folds, or if groups are not
        known; and what reading shards raises.
        """
        images = sum(dataset.rows(split) for split in FOLDED_SPLITS)
        has_groups = dataset.splitting is not None and dataset.splitting.groups_by is not None
        groups = _groups(store, dataset) if has_groups else np.arange(images)
        found = len(np.unique(groups))
        if found < self.count:
            raise ConfigError(
                f"{dataset.reference} has {found} {'groups' if has_groups else 'images'} to train and validate on, "
                f"fewer than {self.count} folds.",
                advice="Set sweep.folds lower.",
            )
        part = _parts_of_groups(groups, self.count) if has_groups else _parts_of_images(images, self.count)
        return np.flatnonzero(part != self.index), np.flatnonzero(part == self.index)


def _parts_of_images(images: int, count: int) -> np.ndarray:
    """The part of each image, int64 [images]."""
    parts = np.empty(images, np.int64)
    for index, members in enumerate(np.array_split(np.random.default_rng(0).permutation(images), count)):
        parts[members] = index
    return parts


def _parts_of_groups(groups: np.ndarray, count: int) -> np.ndarray:
    """The part of each image, int64 [images]. The largest group is assigned first, each one to the smallest part."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(sizes))
    part_of, filled = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part_of[group] = filled.argmin()
        filled[part_of[group]] += sizes[group]
    return part_of[members]


def images_of(store: Store, dataset: Dataset, fold: Fold | None) -> tuple[int, int]:
    """Number of images that a run trains on, and of those that it validates on. Raises what `Fold.rows` raises."""
    if fold is None:
        return dataset.rows("train"), dataset.rows("validation")
    trained, validated = fold.rows(store, dataset)
    return len(trained), len(validated)


def untrained_classes(store: Store, dataset: Dataset, fold: Fold | None) -> tuple[int, ...]:
    """Indices of the classes of which a run has no training images, ascending.

    A fold can lack other classes than the training split. Raises what `Fold.rows` and reading shards raise.
    """
    return tuple(np.flatnonzero(_trained_images(store, dataset, fold) == 0).tolist())


def _trained_images(store: Store, dataset: Dataset, fold: Fold | None) -> np.ndarray:
    """Number of training images of each class, int64 [classes]."""
    if fold is None:
        counts = dataset.counts["train"]
        return np.array([counts.get(name, 0) for name in dataset.classes], np.int64)
    trained, _ = fold.rows(store, dataset)
    return np.bincount(_column(store, dataset, "label")[trained], minlength=len(dataset.classes))


def held_out_but_seen(store: Store, dataset: Dataset, *, before: Dataset) -> str | None:
    """The number of held-out images that a model of the version `before` was trained on, in words; None if it is 0.

    Shards that both versions have are not read: their images are in the same split of both, and once in each version.
    Raises what reading shards raises.
    """
    unchanged = {*before.shards} & {*dataset.shards}

    def digests(version: Dataset, split: str) -> set[bytes]:
        shards = [shard for shard in version.shards_of(split) if shard not in unchanged]
        tables = read_images(store, version, ["sha256"], shards)
        return {digest for table in tables for digest in table["sha256"].to_pylist()}

    trained = digests(before, "train")
    seen = {split: len(trained & digests(dataset, split)) for split in ("validation", "test")}
    found = [f"{count:,} of {dataset.rows(split):,} in {split}" for split, count in seen.items() if count]
    return " and ".join(found) if found else None


def _groups(store: Store, dataset: Dataset) -> np.ndarray:
    """A number for each image's group, int64; images without a group have numbers of their own."""
    if not dataset.groups_in_shards:
        raise ConfigError(
            f"sweep.folds divides groups of images, and {dataset.reference} was made by a release that did not store "
            "them.",
            advice="Ingest once more: `transfer ingest`.",
        )
    names = _column(store, dataset, "group")
    has_group = names != None  # noqa: E711 - an array is compared element by element
    _, numbers = np.unique(names[has_group].astype(str), return_inverse=True)
    groups = np.arange(len(names)) + len(names)
    groups[has_group] = numbers
    return groups


@functools.lru_cache(maxsize=2)
def _column(store: Store, dataset: Dataset, name: str) -> np.ndarray:
    """A column of all rows of `FOLDED_SPLITS`. The cache holds it for all folds and trials of a sweep."""
    shards = [shard for split in FOLDED_SPLITS for shard in dataset.shards_of(split)]
    tables = read_images(store, dataset, [name], shards)
    return np.concatenate([table[name].to_numpy(zero_copy_only=False) for table in tables])


def class_weights(
    setting: Literal["none", "balanced"] | dict[str, float], store: Store, dataset: Dataset, fold: Fold | None
) -> np.ndarray:
    """Weight of each class in the loss of a run, float32 [classes]; `balanced` counts the run's training images.

    Raises ConfigError for a name that is not a class, and what `Fold.rows` and reading shards raise.
    """
    if setting == "none":
        return np.ones(len(dataset.classes), np.float32)
    if setting == "balanced":
        return balanced_class_weights(_trained_images(store, dataset, fold))
    check_weighted_classes(setting, dataset.classes, of=dataset.reference)
    return np.array([setting.get(name, 1.0) for name in dataset.classes], np.float32)


def check_weighted_classes(setting: str | Mapping[str, float], classes: Sequence[str], *, of: str) -> None:
    """Raise ConfigError if `setting` names an unknown class. `of`: the owner of `classes`, in words."""
    unknown = [] if isinstance(setting, str) else sorted(set(setting) - set(classes))
    if unknown:
        names = ", ".join(f"`{name}`" for name in unknown)
        raise ConfigError(
            f"training.class_weights names {names}, not among the classes of {of}.",
            advice=f"The classes are: {', '.join(classes[:20])}.",
        )


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """Weights float32 [classes] by inverse frequency, `n / (classes * count)` as in scikit-learn's `balanced`.

    As in scikit-learn, `classes` is the number of classes that have images.
    """
    expected = np.sum(counts) / np.count_nonzero(counts)
    return np.asarray(expected / np.maximum(counts, 1), np.float32)
