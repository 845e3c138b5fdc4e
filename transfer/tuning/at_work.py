"""Trials that a host has at work: how far each has come, and how it is taken further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transfer.errors import DivergedError, OutOfMemoryError
from transfer.training.history import EpochRow
from transfer.training.run import Run
from transfer.tuning.records import FailedBy

if TYPE_CHECKING:
    from transfer.training.loop import Training
    from transfer.training.stacked import Pack


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
    complete: bool
    checkpoint: int = 0
    """Number of the run's newest checkpoint; 0 where a pack keeps it."""
    trained_flops: float = 0.0
    packed_with: int = 1
    failure: Failure | None = None


class AtWork(Protocol):
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


class Alone(AtWork):
    """A trial that has the workbench to itself while an epoch of it is trained."""

    def __init__(self, training: Training, flops: float) -> None:
        self._training = training
        self._flops = flops
        self._failure: DivergedError | None = None

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Its epochs so far."""
        return self._training.progress.history

    @property
    def phase(self) -> int:
        """The phase that its next epoch belongs to; after its end, one more than its last."""
        return self._training.progress.phase

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""
        return self._training.complete or self._failure is not None

    def next_epoch(self) -> None:
        """Train one more."""
        try:
            self._training.next_epoch()
        except DivergedError as error:
            self._failure = error

    def state(self) -> TrialState:
        """How far it has come."""
        return TrialState(
            run_id=self._training.run.id,
            rows=self.rows,
            complete=self.ended,
            checkpoint=self._training.next_checkpoint - 1,
            trained_flops=self._flops,
            failure=Failure.of(self._failure) if self._failure else None,
        )

    def stop(self) -> None:
        """What it has learned is in its newest checkpoint."""


class Packed(AtWork):
    """One of the trials of a pack, which are all trained whenever one of them is."""

    def __init__(self, run: Run, pack: Pack, flops: float, *, size: int) -> None:
        self._run = run
        self._pack = pack
        self._flops = flops
        self._size = size

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Its epochs so far."""
        return self._pack.histories[self._run.id]

    @property
    def phase(self) -> int:
        """0, and 1 when it has come to its end."""
        return int(self.ended and self._run.id not in self._pack.failures)

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""
        return self._run.id not in self._pack.live

    def next_epoch(self) -> None:
        """Train one more, of all trials of the pack."""
        self._pack.next_epoch()

    def state(self) -> TrialState:
        """How far it has come."""
        failure = self._pack.failures.get(self._run.id)
        return TrialState(
            run_id=self._run.id,
            rows=self.rows,
            complete=self.ended,
            trained_flops=self._flops,
            packed_with=self._size,
            failure=Failure.of(failure) if failure else None,
        )

    def stop(self) -> None:
        """Mask it out."""
        self._pack.stop(self._run.id)
