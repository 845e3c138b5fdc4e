"""What the end of an epoch means for a run, whether it is trained alone or beside others."""

from __future__ import annotations

import math

from transfer.config import EarlyStoppingConfig, PhaseConfig
from transfer.errors import ConfigError, DivergedError
from transfer.training.checkpoints import Progress
from transfer.training.history import EpochRow, watched
from transfer.training.step import Totals


def after_epoch(progress: Progress, row: EpochRow, phase: PhaseConfig, *, checkpoint: int) -> tuple[Progress, bool]:
    """Where a run stands after an epoch, and whether that was the phase's last.

    `checkpoint` is the one about to be written. Raises ConfigError when early stopping has nothing to watch.
    """
    progress = progress.model_copy(
        update={
            "epoch": progress.epoch + 1,
            "step": 0,
            "sums": (0.0, 0.0, 0.0),
            "history": (*progress.history, row),
        }
    )
    ended = progress.epoch == phase.epochs
    if phase.early_stopping:
        progress = _watch(phase.early_stopping, progress, row, checkpoint=checkpoint)
        ended = ended or progress.epochs_since_best >= phase.early_stopping.patience_epochs
    return progress, ended


def after_phase(progress: Progress, *, phases: int) -> Progress:
    """The start of the next phase, or the end of a run of so many `phases`."""
    return Progress(
        phase=progress.phase + 1,
        global_step=progress.global_step,
        history=progress.history,
        complete=progress.phase + 1 == phases,
    )


def checked(totals: Totals, progress: Progress) -> Totals:
    """The totals of an epoch up to where `progress` stands. Raises DivergedError when the loss is not finite."""
    if math.isfinite(totals.loss):
        return totals
    raise DivergedError(
        f"The loss became {totals.loss} in phase {progress.phase + 1}, epoch {progress.epoch + 1}, at or before "
        f"step {progress.step}.",
        advice="Lower the phase's learning_rate, or set optimizer.clip_norm. Checkpoints before it are kept.",
    )


def _watch(rule: EarlyStoppingConfig, progress: Progress, row: EpochRow, *, checkpoint: int) -> Progress:
    """Note whether this epoch is the phase's best so far."""
    score = watched(rule, row)
    if score is None:
        raise ConfigError(
            "early_stopping needs a validation split, and the dataset has none.",
            advice="Set dataset.validation above 0 or remove early_stopping.",
        )
    if progress.best_score is None or score > progress.best_score + rule.min_delta:
        return progress.model_copy(update={"best_score": score, "best_checkpoint": checkpoint, "epochs_since_best": 0})
    return progress.model_copy(update={"epochs_since_best": progress.epochs_since_best + 1})
