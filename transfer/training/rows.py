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
"""Whose images are divided, counted over the shards of one and then of the other, as they are stored."""


@dataclass(frozen=True)
class Fold:
    """One of `count` parts of the images: it is validated on, the others are trained on. `index` counts from 0.

    The parts are equal but for one image. Where images are in groups, a group is in one part as a whole, and the parts
    are as equal as that allows.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"fold{self.index + 1}of{self.count}"

    def rows(self, store: Store, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The images to train on and those to validate on: int64, ascending, counted over `FOLDED_SPLITS`.

        They are decided by the number of images, their groups and the number of folds alone, so all runs on a dataset
        version divide it alike. Raises ConfigError when there are fewer images or groups than folds, or when groups
        are not known; and what reading shards raises.
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
    """The part of each image, int64 [images], of the images' groups: the largest group first, to the smallest part."""
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = np.random.default_rng(0).permutation(len(sizes))
    part_of, filled = np.empty(len(sizes), np.int64), np.zeros(count, np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part_of[group] = filled.argmin()
        filled[part_of[group]] += sizes[group]
    return part_of[members]


def images_of(store: Store, dataset: Dataset, fold: Fold | None) -> tuple[int, int]:
    """How many images a run trains and validates on. Raises what `Fold.rows` raises."""
    if fold is None:
        return dataset.rows("train"), dataset.rows("validation")
    trained, validated = fold.rows(store, dataset)
    return len(trained), len(validated)


def untrained_classes(store: Store, dataset: Dataset, fold: Fold | None) -> tuple[int, ...]:
    """Indices of the classes that a run has no images of to train on, ascending.

    In a fold they can be others than in the training split. Raises what `Fold.rows` and reading shards raise.
    """
    return tuple(np.flatnonzero(_trained_images(store, dataset, fold) == 0).tolist())


def _trained_images(store: Store, dataset: Dataset, fold: Fold | None) -> np.ndarray:
    """How many images of each class a run trains on, int64 [classes]."""
    if fold is None:
        counts = dataset.counts["train"]
        return np.array([counts.get(name, 0) for name in dataset.classes], np.int64)
    trained, _ = fold.rows(store, dataset)
    return np.bincount(_column(store, dataset, "label")[trained], minlength=len(dataset.classes))


def held_out_but_seen(store: Store, dataset: Dataset, *, before: Dataset) -> str | None:
    """The held-out images that a model of the version `before` was trained on, counted in words; None without any.

    Shards that both versions have in one split are not read: an image is in a version once. Raises what reading shards
    raises.
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
    """A column of all rows of `FOLDED_SPLITS`: read once for all folds and trials of a sweep."""
    shards = [shard for split in FOLDED_SPLITS for shard in dataset.shards_of(split)]
    tables = read_images(store, dataset, [name], shards)
    return np.concatenate([table[name].to_numpy(zero_copy_only=False) for table in tables])


def class_weights(
    setting: Literal["none", "balanced"] | dict[str, float], store: Store, dataset: Dataset, fold: Fold | None
) -> np.ndarray:
    """Weight of each class in the loss of a run, float32 [classes]; `balanced` counts the images that it trains on.

    Raises ConfigError for a name that is no class, and what `Fold.rows` and reading shards raise.
    """
    if setting == "none":
        return np.ones(len(dataset.classes), np.float32)
    if setting == "balanced":
        return balanced_class_weights(_trained_images(store, dataset, fold))
    check_weighted_classes(setting, dataset.classes, of=dataset.reference)
    return np.array([setting.get(name, 1.0) for name in dataset.classes], np.float32)


def check_weighted_classes(setting: str | Mapping[str, float], classes: Sequence[str], *, of: str) -> None:
    """Raise ConfigError for a weight of what is no class. `of`: whose classes they are, in words."""
    unknown = [] if isinstance(setting, str) else sorted(set(setting) - set(classes))
    if unknown:
        raise ConfigError(
            f"training.class_weights names {unknown}, which are no classes of {of}.",
            advice=f"The classes are: {', '.join(classes[:20])}.",
        )


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """Weights float32 [classes] by inverse frequency, `n / (classes * count)` as in scikit-learn's `balanced`.

    As there, only classes with images count as classes.
    """
    expected = np.sum(counts) / np.count_nonzero(counts)
    return np.asarray(expected / np.maximum(counts, 1), np.float32)
