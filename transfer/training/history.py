"""What is known about each finished epoch of a run."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from transfer.config import EarlyStoppingConfig, PhaseConfig


class EpochRow(BaseModel):
    """Figures of one finished epoch, all finite. `phase` and `epoch` count from 0, `epoch` over the whole run.

    Validation figures are None where the dataset has no validation split. `learning_rate` is that of the next step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    phase: int
    epoch: int
    loss: float
    accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float
    seconds: float


def watched(rule: EarlyStoppingConfig, row: EpochRow) -> float | None:
    """What early stopping watches, the higher the better; None where there is no validation split."""
    if rule.metric == "accuracy":
        return row.validation_accuracy
    return None if row.validation_loss is None else -row.validation_loss


def row_kept(rows: Sequence[EpochRow], phases: Sequence[PhaseConfig]) -> EpochRow:
    """The epoch whose weights a finished run ends with: its last, or where early stopping went back to."""
    rule = phases[-1].early_stopping
    best, best_score = rows[-1], None
    for row in rows:
        score = watched(rule, row) if rule and row.phase == len(phases) - 1 else None
        if rule and score is not None and (best_score is None or score > best_score + rule.min_delta):
            best, best_score = row, score
    return best
