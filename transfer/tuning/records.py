"""What is written down of trials and of whole sweeps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from transfer.training.history import EpochRow


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrialRecord(_Record):
    """One trial that ended."""

    number: int
    """From 1, in the order in which trials were made."""
    values: dict[str, Any]
    """What it tried, by dotted key of the configuration."""
    run_id: str
    """Empty for a cross-validated trial, each fold of which was a run."""
    status: Literal["finished", "stopped", "failed"]
    """`stopped`: by the scheduler or by a budget, before its last epoch."""
    reason: str | None = None
    """Why it failed or was stopped."""
    rows: tuple[EpochRow, ...] = ()
    """Its epochs; those of cross-validated trials are means over folds."""
    value: float | None = None
    """The sweep's metric on the validation split for the weights that the trial ended with; None when it failed."""
    depth: list[int | str]
    """`unfreeze` of each phase."""
    trained_flops: float = 0.0
    """Multiply-adds that its trained part takes for one image in one pass, the largest of its phases."""
    packed_with: int = 1
    """Trials that were trained together as one program, itself included."""

    @property
    def seconds(self) -> float:
        """Time that its epochs took; of a packed trial, its share."""
        return sum(row.seconds for row in self.rows) / self.packed_with


class SweepResult(_Record):
    """A sweep that ended: what was tried, and what won."""

    id: str
    name: str
    dataset: str
    metric: Literal["accuracy", "loss"]
    search: str
    scheduler: str
    folds: int = 0
    """Over how many folds each trial's figures are means; 0: they are those of the validation split."""
    trials: tuple[TrialRecord, ...]
    winner: int | None
    """Number of the trial that won; the test split has no part in it."""
    ended_by: str
    """Why the sweep ended: every trial ended, a budget was spent, or the target was reached."""
    is_final: bool = True
    """Whether another attempt would add nothing; one that only ran out of time can go on."""
    seconds: float
    """From the first trial's start, of the attempt that ended it."""
