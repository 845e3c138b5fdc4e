"""Trials and sweeps to show, without training any."""

from transfer.training.history import EpochRow
from transfer.tuning.records import SweepResult, TrialRecord, winner_of


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


def failed(number, values=None, *, epochs=0, reason="The loss became nan in phase 1.", **changes):
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
