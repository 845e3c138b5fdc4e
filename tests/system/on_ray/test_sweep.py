"""Sweeps on a real Ray cluster: repeated, and with trials that fail. Their kills are in tests/proof/on_ray."""

from pathlib import Path

import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.sweeping import GRID, configured, statuses, swept
from tests.trial_records import failed
from transfer.errors import DatasetError, TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run
from transfer.tuning.driver import run_sweep
from transfer.tuning.records import winner_of
from transfer.tuning.space import fixed_trials
from transfer.tuning.sweep import SweepRecords, open_sweep


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def checkpoints_of(config, result):
    """How many checkpoints each trial's run has."""
    store = open_store(config.storage)
    return [len(Checkpoints(load_run(store, trial.run_id, config)).numbers()) for trial in result.trials]


def test_a_sweep_tries_all_and_the_best_on_the_validation_split_wins(ray_cluster, digits):
    config, outcome = swept(digits, GRID, name="grid")
    result = outcome.result
    assert statuses(result) == ["finished"] * 4
    assert [trial.packed_with for trial in result.trials] == [2, 2, 1, 1]
    assert outcome.winner.value == max(trial.value for trial in result.trials)
    assert all(trial.value == trial.rows[-1].validation_accuracy for trial in result.trials)
    assert outcome.winner.run_id in Path(outcome.page_uri).read_text()
    # Again: found, with nothing trained and no process started.
    before = checkpoints_of(config, result)
    _, again = swept(digits, GRID, name="grid")
    assert again == outcome
    assert checkpoints_of(config, result) == before


def test_a_scheduler_stops_trials_and_the_target_ends_the_sweep(ray_cluster, digits, caplog):
    caplog.set_level("INFO", logger="transfer")
    worse_and_worse = {"phases.0.learning_rate": [1e-2, 1e-3, 1e-4, 1e-5]}
    asha = {"space": worse_and_worse, "search": "grid", "scheduler": {"kind": "asha", "reduction_factor": 2}}
    _, outcome = swept(digits, asha, name="asha", epochs=4)
    assert "stopped" in statuses(outcome.result)
    stopped = next(trial for trial in outcome.result.trials if trial.status == "stopped")
    assert (stopped.reason, stopped.stopped_by) == ("by asha", "scheduler")
    assert len(stopped.rows) < 4
    assert outcome.winner.status == "finished"
    # An earlier attempt came to a trial that this one does not come to.
    options = {"name": "target", "epochs": 4}
    aiming = configured(digits, {**GRID, "target": 0.01}, **options)
    records = SweepRecords(open_sweep(open_store(aiming.storage), aiming, digits[1]))
    earlier = [trial.model_copy(update={"number": 2 + trial.number}) for trial in outcome.result.trials[:2]]
    for record in earlier:
        records.note_start(record.number, record.values)
        records.note_end(record)
    _, reached = swept(digits, {**GRID, "target": 0.01}, **options)
    assert "trial 1 reached the target" in reached.result.ended_by
    first, *others = reached.result.trials
    assert (first.status, first.stopped_by) == ("stopped", "target")
    assert others == earlier
    assert f"{reached.result.ended_by}: 1 finished" in caplog.text
    assert reached.winner == winner_of(reached.result.trials, "accuracy")


def test_a_failing_trial_is_recorded_and_the_sweep_goes_on(ray_cluster, digits, caplog):
    weights = ["none", {"no such class": 2.0}]
    space = {"training.class_weights": weights, "phases.0.learning_rate": [1e-2, 1e38]}
    phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-3, "optimizer": "sgd"}]
    source, dataset = digits
    grid = {"space": space, "search": "grid"}
    config = digits_config(source, str(source.parent / "storage"), phases=phases, sweep=grid)
    # In an earlier attempt, something else held the memory.
    records = SweepRecords(open_sweep(open_store(config.storage), config, dataset))
    first = fixed_trials(config)[0]
    records.note_start(1, first.values)
    records.note_end(failed(1, first.values, failed_by="memory"))
    outcome = run_sweep(config, dataset, open_store(config.storage))
    assert statuses(outcome.result) == ["finished", "failed", "failed", "failed"]
    assert [trial.failed_by for trial in outcome.result.trials] == [None, "loss", None, None]
    assert "loss became" in outcome.result.trials[1].reason
    assert "no such class" in outcome.result.trials[2].reason
    assert outcome.winner is outcome.result.trials[0]
    assert "3 of 4 trials failed. trial 2: The loss became" in caplog.text


def test_a_sweep_whose_trials_all_fail_says_why(ray_cluster, digits):
    with pytest.raises(TrainingError, match=r"No trial of sweep .* loss became"):
        swept(
            digits,
            {"space": {"phases.0.learning_rate": [1e38]}, "search": "grid"},
            name="hopeless",
            optimizer="sgd",
        )


def test_without_a_validation_split_there_is_nothing_to_compare(digits):
    source, dataset = digits
    config = digits_config(source, str(source.parent / "storage"), sweep=GRID)
    others = [shard for shard in dataset.shards if shard.split != "validation"]
    with pytest.raises(DatasetError, match="validation split"):
        run_sweep(config, dataset.model_copy(update={"shards": others}), open_store(config.storage))
