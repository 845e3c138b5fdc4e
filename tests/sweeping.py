"""Sweeps of tests: on a few digits, four trials unless a test says otherwise."""

from tests.digits import digits_config
from transfer.storage import open_store
from transfer.tuning.driver import run_sweep

SPACE = {"phases.0.unfreeze": [0, 1], "phases.0.learning_rate": [1e-3, 1e-2]}
GRID = {"space": SPACE, "search": "grid"}


def configured(digits, sweep, *, name="digits", epochs=2, optimizer="adam", workers=0):
    """A configuration of the source and storage of `digits`, as `ingest_some_digits` gives them."""
    source, _ = digits
    phases = [{"unfreeze": 0, "epochs": epochs, "learning_rate": 1e-3, "optimizer": optimizer}]
    config = digits_config(
        source, str(source.parent / "storage"), phases=phases, sweep=sweep, workers={"count": workers}
    )
    return config.model_copy(update={"name": name})


def swept(digits, sweep, **options):
    """Run a sweep whose trials no other test has; the configuration, and what came of it."""
    config = configured(digits, sweep, **options)
    return config, run_sweep(config, digits[1], open_store(config.storage))


def statuses(result):
    """How each trial ended."""
    return [trial.status for trial in result.trials]
