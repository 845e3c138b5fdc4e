"""How much each class weighs in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from transfer.dataset.manifest import Dataset
from transfer.errors import ConfigError


def class_weights(setting: Literal["none", "balanced"] | dict[str, float], dataset: Dataset) -> np.ndarray:
    """Weight of each class in the loss, float32 [classes]. Raises ConfigError for a name that is no class."""
    counts = dataset.counts["train"]
    if setting == "none":
        return np.ones(len(dataset.classes), np.float32)
    if setting == "balanced":
        return balanced_class_weights(np.array([counts.get(name, 0) for name in dataset.classes]))
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
