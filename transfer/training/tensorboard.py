"""TensorBoard event files of a run: small immutable files, since nothing in storage is appended to."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from transfer.errors import AlreadyExistsError
from transfer.training.history import EpochRow
from transfer.training.run import Run


def write_events(run: Run, *rows: EpochRow) -> None:
    """Write the figures of consecutive epochs to a file in `<run>/tensorboard`, named by the last of them.

    What was written before a restart is left as it is.
    """
    with tempfile.TemporaryDirectory() as folder:
        # SummaryWriter would start a thread for each run, and keep it in mind until the process ends.
        writer = EventsWriter(f"{folder}/events")
        for row in rows:
            for name, value in _scalars(row).items():
                if value is not None:
                    writer.write_event(Event(wall_time=time.time(), step=row.epoch, summary=scalar(name, value)))
        writer.close()
        (written,) = Path(folder).iterdir()
        # TensorBoard reads a folder's event files in the order of their names.
        with suppress(AlreadyExistsError):
            run.store.put(f"{run.prefix}/tensorboard/events.out.tfevents.{rows[-1].epoch:08d}", written)


def _scalars(row: EpochRow) -> dict[str, float | None]:
    return {
        "epoch_loss/train": row.loss,
        "epoch_loss/validation": row.validation_loss,
        "epoch_accuracy/train": row.accuracy,
        "epoch_accuracy/validation": row.validation_accuracy,
        "learning_rate": row.learning_rate,
    }
