"""TensorBoard event files of a run: one small immutable file an epoch, since nothing in storage is appended to."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tensorboardX import SummaryWriter

from transfer.errors import AlreadyExistsError
from transfer.training.history import EpochRow
from transfer.training.run import Run


def write_events(run: Run, row: EpochRow) -> None:
    """Write an epoch's figures to `<run>/tensorboard`. An epoch that was written before a restart is left as it is."""
    scalars = {
        "epoch_loss/train": row.loss,
        "epoch_loss/validation": row.validation_loss,
        "epoch_accuracy/train": row.accuracy,
        "epoch_accuracy/validation": row.validation_accuracy,
        "learning_rate": row.learning_rate,
    }
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in scalars.items():
                if value is not None:
                    writer.add_scalar(name, value, row.epoch)
        (written,) = Path(folder).iterdir()
        # TensorBoard reads a folder's event files in the order of their names.
        try:
            run.store.put(f"{run.prefix}/tensorboard/events.out.tfevents.{row.epoch:08d}", written)
        except AlreadyExistsError:
            return
