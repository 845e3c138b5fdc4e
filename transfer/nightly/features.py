"""Features of some images: what is kept of the frozen part for a run's first phase that keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from transfer.activations.batches import KeptSplit
from transfer.dataset.manifest import Dataset
from transfer.nightly.sample import ShardRows
from transfer.training.inputs import Inputs
from transfer.training.restore import untrained_model
from transfer.training.run import Run
from transfer.training.workbench import own_workbench

_TAKE_SIZE_BYTES = 32 * 1024**2
"""Of what is kept, copied out of the maps at a time."""


def kept_features(
    run: Run, dataset: Dataset, groups: Sequence[Sequence[ShardRows]]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Features float32 [n, channels] and labels int32 [n] for each group of rows of the training split, none empty.

    A map is averaged over its places. Has all that the run's phases will train on computed and kept first, where it is
    not yet. None where no phase keeps its frozen part's output. Raises what `untrained_model` and `Inputs` raise.
    """
    with own_workbench().strategy.scope():
        inputs = Inputs(run, dataset, untrained_model(run, dataset))
        inputs.extract()
    phase = next((index for index, choice in enumerate(inputs.choices) if choice.kept), None)
    if phase is None:
        return None
    return [_features(inputs.open_some(phase, [rows.shard for rows in group]), group) for group in groups]


def _features(kept: KeptSplit, group: Sequence[ShardRows]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *(rows.shard.rows for rows in group)])
    places = np.concatenate([start + rows.rows for start, rows in zip(starts, group, strict=False)])
    parts = []
    for some in np.array_split(places, math.ceil(len(places) * kept.row_bytes / _TAKE_SIZE_BYTES)):
        values = np.empty((len(some), *kept.shape), kept.dtype)
        kept.take(some, values)
        parts.append(values.reshape(len(some), -1, kept.shape[-1]).mean(axis=1, dtype=np.float32))
    return np.concatenate(parts), kept.labels[places]
