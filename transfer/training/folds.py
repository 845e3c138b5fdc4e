"""Cross-validation: a run that is validated on a part of training and validation split together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Dataset
from transfer.errors import ConfigError

FOLDED_SPLITS = ("train", "validation")
"""Whose images are divided, counted over the shards of one and then of the other, as they are stored."""


@dataclass(frozen=True)
class Fold:
    """One of `count` parts, equal but for one image: it is validated on, the others are trained on. `index` from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"fold{self.index + 1}of{self.count}"

    def rows(self, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """The images to train on and those to validate on: int64, ascending, counted over `FOLDED_SPLITS`.

        They are decided by the number of images and of folds alone, so all runs on a dataset version divide it alike.
        Raises ConfigError when there are fewer images than folds.
        """
        images = sum(dataset.rows(split) for split in FOLDED_SPLITS)
        if images < self.count:
            raise ConfigError(
                f"{dataset.reference} has {images} images to train and validate on, fewer than {self.count} folds.",
                advice="Set sweep.folds lower.",
            )
        parts = np.array_split(np.random.default_rng(0).permutation(images), self.count)
        validated = parts.pop(self.index)
        return np.sort(np.concatenate(parts)), np.sort(validated)


def images_of(dataset: Dataset, fold: Fold | None) -> tuple[int, int]:
    """How many images a run trains and validates on. Raises what `Fold.rows` raises."""
    if fold is None:
        return dataset.rows("train"), dataset.rows("validation")
    trained, validated = fold.rows(dataset)
    return len(trained), len(validated)
