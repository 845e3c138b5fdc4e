"""The epochs of a run: their figures as TensorBoard's event files, and the epoch whose weights the run ends with."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from transfer.catalog import layout
from transfer.catalog.run import EpochRow
from transfer.config import EarlyStoppingConfig, PhaseConfig
from transfer.errors import AlreadyExistsError
from transfer.training.run import Run

_Figures = dict[int, dict[str, float | None]]
"""By epoch, then by TensorBoard's tag."""


def write_events(run: Run, *rows: EpochRow) -> None:
    """Write the figures of consecutive epochs to `<run>/tensorboard/train` and `…/validation`, one file in each.

    TensorBoard takes each folder for a run, and draws a tag that several runs have in one chart. The file's name has
    the number of its last epoch. Files that an attempt before a restart wrote do not change.
    """
    training: _Figures = {
        row.epoch: {"epoch_loss": row.loss, "epoch_accuracy": row.accuracy, "learning_rate": row.learning_rate}
        for row in rows
    }
    validation: _Figures = {
        row.epoch: {"epoch_loss": row.validation_loss, "epoch_accuracy": row.validation_accuracy}
        for row in rows
        if row.validation_loss is not None
    }
    for split, figures in (("train", training), ("validation", validation)):
        if figures:
            _put(run, layout.events(run.folder, split, max(figures)), figures)


def _put(run: Run, name: str, figures: _Figures) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # A SummaryWriter would start a thread for each run, and hold it until the process ends.
        writer = EventsWriter(f"{folder}/events")
        for epoch, scalars in figures.items():
            for tag, value in scalars.items():
                writer.write_event(Event(wall_time=time.time(), step=epoch, summary=scalar(tag, value)))
        writer.close()
        (written,) = Path(folder).iterdir()
        # TensorBoard reads a folder's event files in the order of their names.
        with suppress(AlreadyExistsError):
            run.store.put(name, written)


SMALLEST_PROBABILITY = 1e-7
"""Smaller probabilities count as this one in a loss, as in Keras's cross-entropy: one certain mistake must not make the
mean infinite."""


def watched(rule: EarlyStoppingConfig, row: EpochRow) -> float | None:
    """The score that early stopping watches, higher is better; None if there is no validation split."""
    if rule.metric == "accuracy":
        return row.validation_accuracy
    return None if row.validation_loss is None else -row.validation_loss


def final_row(rows: Sequence[EpochRow], phases: Sequence[PhaseConfig]) -> EpochRow:
    """The epoch whose weights a finished run ends with: the last one, or the one that early stopping went back to."""
    rule = phases[-1].early_stopping
    best = best_row([row for row in rows if row.phase == len(phases) - 1], rule) if rule else None
    return best or rows[-1]


class FinalEpoch(BaseModel):
    """The epoch whose weights a run ends with. `epoch` counts from 1 within its phase, which counts from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    phase: int
    epoch: int
    of: int
    """Epochs that the phase was trained for."""
    best_by: Literal["loss", "accuracy"] | None
    """The metric that early stopping watched; None without early stopping, when the last epoch counts."""
    value: float | None
    """Value of that metric on the validation split after the epoch."""


def kept_epoch(rows: Sequence[EpochRow], phases: Sequence[PhaseConfig]) -> FinalEpoch:
    """Which epoch's weights a finished run ends with, and why. `rows`: one or more."""
    kept, rule = final_row(rows, phases), phases[-1].early_stopping
    of_phase = [row for row in rows if row.phase == kept.phase]
    value = None
    if rule is not None:
        value = kept.validation_accuracy if rule.metric == "accuracy" else kept.validation_loss
    return FinalEpoch(
        phase=kept.phase,
        epoch=of_phase.index(kept) + 1,
        of=len(of_phase),
        best_by=rule.metric if rule else None,
        value=value,
    )


def best_row(rows: Sequence[EpochRow], rule: EarlyStoppingConfig) -> EpochRow | None:
    """The best of a phase's epochs by the rule of early stopping; None if there is no validation split."""
    best, best_score = None, -math.inf
    for row in rows:
        score = watched(rule, row)
        if score is not None and (best is None or score > best_score + rule.min_delta):
            best, best_score = row, score
    return best
