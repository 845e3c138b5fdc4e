"""The interface of a trial in training, and its implementation for cross-validated trials.

`tuning/trial_actor.py` has the implementations for trials that are trained alone and in a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from transfer.catalog.run import EpochRow
from transfer.config import PhaseConfig
from transfer.errors import DivergedError, OutOfMemoryError
from transfer.training.history import final_row
from transfer.tuning.records import FailedBy


@dataclass(frozen=True)
class Branch:
    """The checkpoint of another trial's run from which a trial continues (population based training)."""

    run_id: str
    checkpoint: int


@dataclass(frozen=True)
class Failure:
    """The error that ended a trial."""

    reason: str
    by: FailedBy | None

    @classmethod
    def of(cls, error: DivergedError | OutOfMemoryError) -> Failure:
        """The failure of an error that an immediate second attempt would meet again."""
        return cls(str(error), by="memory" if isinstance(error, OutOfMemoryError) else "loss")


@dataclass(frozen=True)
class TrialState:
    """How far a trial has come."""

    run_id: str
    """Id of the trial's run; empty for a trial whose folds are runs."""
    rows: tuple[EpochRow, ...]
    ended: bool
    """Whether the trial has no epoch left: it was trained to its end, or failed."""
    checkpoint: int = 0
    """Number of the run's newest checkpoint; 0 if a pack holds the trial's state."""
    trained_flops: float = 0.0
    packed_with: int = 1
    failure: Failure | None = None


class TrialRunner(Protocol):
    """A trial in training."""

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """The trial's epochs so far."""

    @property
    def phase(self) -> int:
        """The phase of the next epoch; after the end, the number of phases."""

    @property
    def ended(self) -> bool:
        """Whether the trial has no epoch left."""

    def next_epoch(self) -> None:
        """Train one more."""

    def state(self) -> TrialState:
        """How far it has come."""

    def stop(self) -> None:
        """Train it no further."""


_MEANS = ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate")


class FoldsRunner(TrialRunner):
    """A trial that is trained once for each fold.

    All folds train a phase together. After early stopping has ended the phase of a fold, the fold counts with the epoch
    that it went back to. So the trial's last row belongs to the weights with which its folds ended. A fold that fails
    ends the trial.
    """

    def __init__(self, folds: Sequence[TrialRunner], phases: Sequence[PhaseConfig]) -> None:
        self._folds = folds
        self._phases = phases

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Means over all folds, and the sum of their seconds."""
        rows: list[EpochRow] = []
        for phase in range(len(self._phases)):
            still_in_it = [_epochs(fold, phase) for fold in self._folds if fold.phase <= phase]
            epochs = min(still_in_it) if still_in_it else max(_epochs(fold, phase) for fold in self._folds)
            rows += [self._mean(phase, epoch, number=len(rows) + epoch) for epoch in range(epochs)]
        return tuple(rows)

    @property
    def phase(self) -> int:
        """The phase of the fold with the least progress."""
        return min(fold.phase for fold in self._folds)

    @property
    def ended(self) -> bool:
        """Whether the trial has no epoch left."""
        return self._failure is not None or all(fold.ended for fold in self._folds)

    def next_epoch(self) -> None:
        """Train one more epoch of the folds with the least progress. After an interruption some folds may be ahead."""
        live = [fold for fold in self._folds if not fold.ended]
        stands = [(fold.phase, _epochs(fold, fold.phase)) for fold in live]
        for fold, stand in zip(live, stands, strict=True):
            if stand == min(stands):
                fold.next_epoch()

    def state(self) -> TrialState:
        """The trial's state, without a run of its own."""
        first = self._folds[0].state()
        return TrialState(
            run_id="",
            rows=self.rows,
            ended=self.ended,
            trained_flops=first.trained_flops,
            packed_with=first.packed_with,
            failure=self._failure,
        )

    def stop(self) -> None:
        """End the training of all folds."""
        for fold in self._folds:
            fold.stop()

    @property
    def _failure(self) -> Failure | None:
        failures = (fold.state().failure for fold in self._folds)
        return next((failure for failure in failures if failure is not None), None)

    def _mean(self, phase: int, epoch: int, *, number: int) -> EpochRow:
        """Means over the folds for an epoch of a phase. `number`: the epoch's number in the trial's history."""
        counted, seconds = [], 0.0
        for fold in self._folds:
            own = _of_phase(fold, phase)
            is_over = fold.phase > phase and epoch >= len(own) - 1
            counted.append(final_row(own, self._phases[: phase + 1]) if is_over else own[epoch])
            seconds += own[epoch].seconds if epoch < len(own) else 0.0
        means = {name: fmean(getattr(row, name) for row in counted) for name in _MEANS}
        return EpochRow(phase=phase, epoch=number, seconds=seconds, **means)


def _of_phase(fold: TrialRunner, phase: int) -> list[EpochRow]:
    return [row for row in fold.rows if row.phase == phase]


def _epochs(fold: TrialRunner, phase: int) -> int:
    return len(_of_phase(fold, phase))
