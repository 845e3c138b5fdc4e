"""What can be asked of a trial that is being trained, and one that is trained over the folds of a cross-validation.

`tuning/trial_actor.py` has the trials that are trained alone and in a pack.
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
    """Where a trial goes on from: a checkpoint of another trial's run (population based training)."""

    run_id: str
    checkpoint: int


@dataclass(frozen=True)
class Failure:
    """Why a trial is not trained any further."""

    reason: str
    by: FailedBy | None

    @classmethod
    def of(cls, error: DivergedError | OutOfMemoryError) -> Failure:
        """An error that another attempt right away would end in, too."""
        return cls(str(error), by="memory" if isinstance(error, OutOfMemoryError) else "loss")


@dataclass(frozen=True)
class TrialState:
    """How far a trial has come."""

    run_id: str
    """Empty for a trial whose folds are runs."""
    rows: tuple[EpochRow, ...]
    ended: bool
    """Whether it has no epoch to come: it was trained to its end, or failed."""
    checkpoint: int = 0
    """Number of the run's newest checkpoint; 0 where a pack keeps it."""
    trained_flops: float = 0.0
    packed_with: int = 1
    failure: Failure | None = None


class TrialRunner(Protocol):
    """A trial that is being trained."""

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Its epochs so far."""

    @property
    def phase(self) -> int:
        """The phase that its next epoch belongs to; after its end, one more than its last."""

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""

    def next_epoch(self) -> None:
        """Train one more."""

    def state(self) -> TrialState:
        """How far it has come."""

    def stop(self) -> None:
        """Train it no further."""


_MEANS = ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate")


class FoldsRunner(TrialRunner):
    """A trial that is trained once for each fold.

    All folds go through a phase together. One whose phase early stopping has ended counts with the epoch that it went
    back to, so the trial's last row is that of the weights that its folds ended with. One that fails ends the trial.
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
        """That of the fold that is least far."""
        return min(fold.phase for fold in self._folds)

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""
        return self._failure is not None or all(fold.ended for fold in self._folds)

    def next_epoch(self) -> None:
        """Train one more, in the folds that are least far: in all but those that were ahead when it was interrupted."""
        live = [fold for fold in self._folds if not fold.ended]
        stands = [(fold.phase, _epochs(fold, fold.phase)) for fold in live]
        for fold, stand in zip(live, stands, strict=True):
            if stand == min(stands):
                fold.next_epoch()

    def state(self) -> TrialState:
        """How far it has come. There is no run of its own."""
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
        """Train no fold any further."""
        for fold in self._folds:
            fold.stop()

    @property
    def _failure(self) -> Failure | None:
        failures = (fold.state().failure for fold in self._folds)
        return next((failure for failure in failures if failure is not None), None)

    def _mean(self, phase: int, epoch: int, *, number: int) -> EpochRow:
        """Figures of an epoch of a phase, the trial's row `number`."""
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
