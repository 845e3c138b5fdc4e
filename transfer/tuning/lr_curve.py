"""The curve of a learning-rate range test, and the rate that it suggests by fastai's rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.errors import TrainingError
from transfer.storage import Store, as_model, read_document

MIN_STEPS = 20
"""Smallest number of losses from which a rate is suggested."""

_BETA = 0.98
_DIVERGED_FACTOR = 4.0


class RateCurve(BaseModel):
    """The training loss of each step of a range test, always finite, and the learning rate of the step.

    `diverged`: whether the loss diverged, which ended the test before its highest learning rate.
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

        Slopes are taken against the logarithm of the rate, over several steps, because single batches differ too much.
        Raises TrainingError if the curve is too short.
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
        """Rates and smoothed losses without the first steps, whose average is over few losses, and without the last.

        This is fastai's rule. Raises TrainingError if too few steps are left.
        """
        if len(self.rates) < MIN_STEPS:
            raise TrainingError(
                f"The loss diverged after {len(self.rates)} steps, which is too early to suggest a learning rate.",
                advice="Start at a lower learning rate (`--from`).",
            )
        used = slice(len(self.rates) // 10, -5)
        return np.array(self.rates)[used], self.smoothed[used]


def has_diverged(losses: Sequence[float]) -> bool:
    """Whether the last loss is not finite, or the smoothed loss is above four times its minimum (fastai's rule)."""
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
    rank: int | None = None
    """Rank of the phase's adapters; None if it has none."""
    optimizer: str
    batch_size: int
    curve: RateCurve
    suggestion: float
    """The learning rate at which the smoothed loss falls fastest."""
    tenth_of_minimum: float
    """A tenth of the learning rate at which the smoothed loss is lowest."""

    @property
    def setting(self) -> str:
        """The argument of `--set` that sets the suggested rate."""
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
