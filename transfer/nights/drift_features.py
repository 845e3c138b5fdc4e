"""Cached features of a sample of a dataset version's images, for the check `drift`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from transfer.dataset.manifest import Dataset
from transfer.nights.drift import ShardRows
from transfer.training.feature_plan import FeaturePlan
from transfer.training.run import Run
from transfer.training.samples import CachedSplit
from transfer.training.shared_models import process_models, untrained_model

_TAKE_SIZE_BYTES = 32 * 1024**2
"""Size of the features that are copied at a time."""


def cached_features(
    run: Run, dataset: Dataset, groups: Sequence[Sequence[ShardRows]]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Features float32 [n, channels] and labels int32 [n] for each group of rows of the training split, none empty.

    Feature maps are averaged over their positions. Missing cached features of all phases of the run are computed first.
    Returns None if no phase has cached features. Raises the errors of `untrained_model` and `FeaturePlan`.
    """
    with process_models().strategy.scope():
        inputs = FeaturePlan(run, dataset, untrained_model(run, dataset))
        inputs.extract()
    phase = next((index for index, choice in enumerate(inputs.choices) if choice.cached), None)
    if phase is None:
        return None
    return [_features(inputs.open_some(phase, [rows.shard for rows in group]), group) for group in groups]


def _features(cached: CachedSplit, group: Sequence[ShardRows]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(rows.shard.rows for rows in group)])
    places = np.concatenate([start + rows.rows for start, rows in zip(starts, group, strict=False)])
    parts = []
    for some in np.array_split(places, math.ceil(len(places) * cached.row_bytes / _TAKE_SIZE_BYTES)):
        values = np.empty((len(some), *cached.shape), cached.dtype)
        cached.take(some, values)
        parts.append(values.reshape(len(some), -1, cached.shape[-1]).mean(axis=1, dtype=np.float32))
    return np.concatenate(parts), cached.labels[places]
