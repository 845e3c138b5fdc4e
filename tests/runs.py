"""Runs, trials and sweeps as training leaves them, without a network: a checkpoint is what it says and some arrays."""

import numpy as np

from transfer.catalog.run import EpochRow, Progress
from transfer.config import parse_config
from transfer.storage import put_document
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import Run
from transfer.tuning.records import SweepResult, TrialRecord, winner_of


def run_config(storage, *, epochs=2, **phase):
    """A configuration of two phases, the first of one epoch."""
    return parse_config(
        {
            "name": "digits",
            "storage": str(storage),
            "dataset": {"source": "digits"},
            "base": {"model": "base.keras"},
            "phases": [
                {"unfreeze": 0, "epochs": 1, "learning_rate": 0.1},
                {"unfreeze": 0, "epochs": epochs, "learning_rate": 0.1, **phase},
            ],
        }
    )


def store_run(store, run_id, accuracies=(0.9, 0.2), *, complete=True, mid_epoch=False, phase=None, **start):
    """Put a run there with a checkpoint after each epoch, by its validation accuracies; `start` is of its run.json."""
    config = run_config(store.uri, epochs=max(len(accuracies) - 1, 1), **(phase or {}))
    document = {
        "identity": {},
        "config": config.model_dump(mode="json"),
        "dataset": {"name": "digits", "number": 1},
        "started": "2020-01-01T00:00:00+00:00",
        **start,
    }
    put_document(store, f"runs/{run_id}/run.json", document)
    run = Run(store, run_id, config, "digits", 1)
    rows, number = [], 0
    for epoch, accuracy in enumerate(accuracies):
        if mid_epoch:
            number += 1
            save(run, number, Progress(phase=min(epoch, 1), step=1, history=tuple(rows)))
        rows.append(row(epoch, accuracy))
        number += 1
        is_end = complete and epoch == len(accuracies) - 1
        save(run, number, Progress(phase=2 if is_end else 1, epoch=epoch, history=tuple(rows), complete=is_end))
    store.put(f"{run.folder}/tensorboard/events", b"events")
    return run


def row(epoch, accuracy):
    """Figures of an epoch whose validation loss is its accuracy."""
    figures = {"loss": 1.0, "accuracy": 0.5, "learning_rate": 0.1, "seconds": 1.0}
    validation = {"validation_accuracy": accuracy, "validation_loss": accuracy}
    return EpochRow(phase=min(epoch, 1), epoch=epoch, **validation, **figures)


def save(run, number, progress):
    """Write a checkpoint."""
    Checkpoints(run).save(number, progress, weights=[np.full(3, number)], optimizer=[np.full(5, number)])


def assert_whole(run):
    """Every checkpoint that is there can be read, and the last one is the run's end."""
    checkpoints = Checkpoints(run)
    assert [checkpoints.read(number).number for number in checkpoints.numbers()] == checkpoints.numbers()
    assert checkpoints.complete().number == checkpoints.numbers()[-1]


def trial(number, values=None, *, value=0.5, epochs=3, depth=0, **changes):
    values = {"phases.0.learning_rate": 10.0**-number} if values is None else values
    rows = tuple(
        EpochRow(
            phase=0,
            epoch=epoch,
            loss=2.0 / (epoch + 1),
            accuracy=0.5,
            validation_loss=2.2 / (epoch + 1),
            validation_accuracy=0.4,
            learning_rate=1e-3,
            seconds=2.0,
        )
        for epoch in range(epochs)
    )
    content = {
        "number": number,
        "values": values,
        "run_id": f"digits-{number:012x}",
        "status": "finished",
        "rows": rows,
        "value": value,
        "depth": [depth],
        "trained_flops": 1e6 * (depth + 1 if isinstance(depth, int) else 20),
    }
    return TrialRecord(**(content | changes))


def failed(number, values=None, *, epochs=0, reason="The loss became nan in phase 0.", **changes):
    return trial(number, values, value=None, epochs=epochs, status="failed", reason=reason, **changes)


def sweep(trials, **changes):
    metric = changes.get("metric", "accuracy")
    winner = winner_of(trials, metric)
    content = {
        "id": "digits-sweep-0123456789ab",
        "name": "digits",
        "dataset": "digits/00000001",
        "metric": metric,
        "search": "random",
        "scheduler": "none",
        "trials": tuple(trials),
        "winner": winner.number if winner else None,
        "ended_by": "every trial ended",
        "seconds": 12.5,
    }
    return SweepResult(**(content | changes))
