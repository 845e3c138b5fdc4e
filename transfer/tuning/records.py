"""What is written down of trials and of whole sweeps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from transfer.training.history import EpochRow

BudgetKey = Literal["target", "max_epochs", "max_seconds"]
"""What ends a whole sweep, by its key in section `sweep`."""

FailedBy = Literal["memory", "loss"]
"""What ended a trial by itself: memory did not suffice, or the loss was not finite."""

Status = Literal["finished", "stopped", "failed"]
# What reasons said before records had `stopped_by`.
_REASONS: dict[str, BudgetKey] = {
    "reached the target": "target",
    "epochs is spent": "max_epochs",
    "seconds is spent": "max_seconds",
}


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
    status: Status
    """`stopped`: by the scheduler or by a budget, before its last epoch."""
    reason: str | None = None
    """Why it failed or was stopped, for people."""
    stopped_by: Literal["scheduler"] | BudgetKey | None = None
    """Who stopped it; None of one that was not stopped."""
    failed_by: FailedBy | None = None
    """What it failed by; None of one that did not fail, or by anything else."""
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

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_release(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("status") == "stopped" and "stopped_by" not in document:
            reason = document.get("reason") or ""
            by = next((budget for words, budget in _REASONS.items() if words in reason), "scheduler")
            return {**document, "stopped_by": by}
        return document

    @property
    def can_go_on(self) -> bool:
        """Whether another attempt may bring it further: time ended it, or memory that something else may have held."""
        return self.stopped_by == "max_seconds" or self.failed_by == "memory"

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
    """Whether another attempt would add nothing."""
    seconds: float
    """From the first trial's start, of the attempt that ended it."""

    @property
    def counts(self) -> dict[Status, int]:
        """How many trials ended with each status."""
        return {status: sum(trial.status == status for trial in self.trials) for status in get_args(Status)}


def nothing_to_add(trials: Iterable[TrialRecord], *, spent: BudgetKey | None) -> bool:
    """Whether a sweep is final that ended with these trials: by its target, its epochs, or with none that can go on."""
    if spent is None:
        return not any(trial.can_go_on for trial in trials)
    return spent != "max_seconds"


def best_first(trials: Iterable[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials in the order in which they could win.

    First those that finished or that the end of the sweep stopped, by value; of equally good ones that which trains
    least, then one that finished, then the first. Behind them those that a scheduler stopped: their values are of early
    epochs, at which others were better. Last those without a value.
    """
    sign = -1.0 if metric == "accuracy" else 1.0

    def place(trial: TrialRecord) -> tuple[bool, bool, float, float, bool, int]:
        value = sign * (trial.value or 0.0)
        is_out = trial.stopped_by == "scheduler"
        return trial.value is None, is_out, value, trial.trained_flops, trial.status != "finished", trial.number

    return sorted(trials, key=place)


def winner_of(trials: Iterable[TrialRecord], metric: str) -> TrialRecord | None:
    """The best trial; None where none has a value."""
    best = next(iter(best_first(trials, metric)), None)
    return best if best is not None and best.value is not None else None
