"""What a learning-rate range test measured, and the rate that it suggests, as in fastai."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.errors import TrainingError
from transfer.storage import Store, as_model, read_document

MIN_STEPS = 20
"""Fewer losses do not make a curve."""

_BETA = 0.98
_DIVERGED_FACTOR = 4.0


class RateCurve(BaseModel):
    """Training loss of each step of a range test, all finite, and the learning rate that the step was taken with.

    `diverged`: whether the loss grew out of bounds, which ended the test before its highest learning rate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool

    @property
    def smoothed(self) -> np.ndarray:
        """Exponential moving average of the losses, float64 [steps]."""
        return _smooth(self.losses)

    @property
    def steepest(self) -> float:
        """The learning rate at which the smoothed loss falls fastest on its way to its lowest value.

        Slopes are taken against the logarithm of the rate, over a few steps, for single batches differ too much.
        Raises TrainingError when the curve is too short.
        """
        rates, smoothed = self._usable()
        width = max(len(self.rates) // 40, 1)
        slopes = smoothed[2 * width :] - smoothed[: -2 * width]
        until_lowest = max(int(np.argmin(smoothed)) - width + 1, 1)
        return float(rates[np.argmin(slopes[:until_lowest]) + width])

    @property
    def tenth_of_minimum(self) -> float:
        """A tenth of the learning rate at which the smoothed loss is lowest. Raises what `steepest` raises."""
        rates, smoothed = self._usable()
        return float(rates[np.argmin(smoothed)] / 10)

    def _usable(self) -> tuple[np.ndarray, np.ndarray]:
        """Rates and smoothed losses without the first steps, where the average is of few, and the last, as in fastai.

        Raises TrainingError when too few are left.
        """
        if len(self.rates) < MIN_STEPS:
            raise TrainingError(
                f"The loss grew out of bounds after {len(self.rates)} steps, too few to suggest a learning rate from.",
                advice="Start at a lower learning rate.",
            )
        used = slice(len(self.rates) // 10, -5)
        return np.array(self.rates)[used], self.smoothed[used]


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the newest loss is not finite, or its average above four times the lowest before (fastai's rule)."""
    smoothed = _smooth(losses)
    return not np.isfinite(losses[-1]) or bool(smoothed[-1] > _DIVERGED_FACTOR * smoothed.min())


def _smooth(losses: Sequence[float]) -> np.ndarray:
    """Exponential moving average, corrected for its start from zero, as in fastai."""
    averages, average = [], 0.0
    for count, loss in enumerate(losses, start=1):
        average = _BETA * average + (1 - _BETA) * loss
        averages.append(average / (1 - _BETA**count))
    return np.array(averages)


class FoundRate(BaseModel):
    """The learning rate that a range test suggests for a phase of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str
    name: str
    dataset: str
    base: str
    phase: int
    """From 0."""
    unfreeze: int | str
    optimizer: str
    batch_size: int
    curve: RateCurve
    suggestion: float
    """Where the smoothed loss falls fastest."""
    tenth_of_minimum: float
    """A tenth of where it is lowest."""

    @property
    def setting(self) -> str:
        """What to give to `--set` to use it."""
        return f"phases.{self.phase}.learning_rate={self.suggestion:.1e}"


class StoredRate(BaseModel):
    """The document of a range test."""

    found: FoundRate
    page: str
    """SHA-256 of the page."""


def read_rate(store: Store, test_id: str) -> tuple[FoundRate, str]:
    """A range test and the name of its page. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    folder = layout.range_test_folder(test_id)
    stored = as_model(StoredRate, read_document(store, layout.curve(folder)), uri=store.uri)
    return stored.found, layout.range_test_page(folder, stored.page)
