"""More kinds of sweeps on a real Ray cluster: over actors and workers, drawn, populations, on a GPU, ended, failing."""

import subprocess
import sys

import pytest

from tests.digits import GRID, configured, digits_config, ingest_some_digits, statuses, swept
from tests.runs import failed
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run
from transfer.tuning.driver import run_sweep
from transfer.tuning.records import SweepRecords, open_sweep, winner_of
from transfer.tuning.space import fixed_trials


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


@pytest.mark.thorough
def test_several_actors_divide_the_trials_and_find_the_same(ray_cluster, digits):
    # As many as the cluster has CPUs; the trials of a pack stay together.
    _, outcome = swept(digits, GRID, name="actors", workers=1)
    _, alone = swept(digits, GRID, name="grid")
    assert [trial.packed_with for trial in outcome.result.trials] == [2, 2, 1, 1]
    for trial, expected in zip(outcome.result.trials, alone.result.trials, strict=True):
        assert trial.value == expected.value
        assert [row.loss for row in trial.rows] == pytest.approx([row.loss for row in expected.rows], rel=1e-5)


def test_suggestions_and_populations_are_trained(ray_cluster, digits):
    rates = {"phases.0.learning_rate": {"log_uniform": [1e-3, 1e-1]}}
    _, suggested = swept(digits, {"space": rates, "search": "optuna", "trials": 3}, name="optuna")
    assert statuses(suggested.result) == ["finished"] * 3
    config, population = swept(digits, {"space": rates, "trials": 4, "scheduler": "pbt"}, name="pbt", epochs=3)
    result = population.result
    assert statuses(result) == ["finished"] * 4
    # The worst went on from the best one's weights: they share an epoch.
    losses = [trial.rows[0].loss for trial in result.trials]
    assert len(set(losses)) < 4
    runs = [load_run(open_store(config.storage), trial.run_id, config) for trial in result.trials]
    assert all(Checkpoints(run).complete() for run in runs)
    # While they were trained, others could go on from any of their checkpoints.
    assert max(len(Checkpoints(run).numbers()) for run in runs) <= 2


@pytest.mark.thorough
def test_trials_of_two_workers_each_learn_the_same(ray_cluster, digits):
    source, dataset = digits
    # At 1e-2 this training magnifies a change of the first weights in their last digit to 3e-4, in one process, too.
    rates = {"space": {"phases.0.learning_rate": [5e-4, 1e-3]}, "search": "grid"}
    phases = [{"unfreeze": 1, "epochs": 1, "learning_rate": 1e-3}]

    def outcome(name, count):
        config = digits_config(
            source, str(source.parent / "storage"), phases=phases, sweep=rates, workers={"count": count}
        ).model_copy(update={"name": name})
        return run_sweep(config, dataset, open_store(config.storage)).result

    found, expected = outcome("groups", 2), outcome("one-process", 0)
    assert statuses(found) == ["finished"] * 2
    for trial, other in zip(found.trials, expected.trials, strict=True):
        assert [row.loss for row in trial.rows] == pytest.approx([row.loss for row in other.rows], rel=1e-5)
        assert (trial.value, trial.trained_flops) == (other.value, other.trained_flops)


SHARED_GPU = """
import sys
import ray
from tests.digits import digits_config, ingest_some_digits
from transfer.storage import open_store
from transfer.tuning.driver import _start_actors
from transfer.tuning.space import fixed_trials
from transfer.tuning.records import open_sweep
from pathlib import Path

source, dataset = ingest_some_digits(Path(sys.argv[1]))
sweep = {"space": {"phases.0.learning_rate": [1e-3, 1e-2, 1e-1]}, "search": "grid", "gpus_per_trial": 0.5}
config = digits_config(
    source, str(source.parent / "storage"), sweep=sweep, workers={"count": 1, "gpus_per_worker": 1}
)
ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False)
opened = open_sweep(open_store(config.storage), config, dataset)
actors = _start_actors(opened, fixed_trials(config))
ray.get([actor.ready.remote() for actor in actors])
print(len(actors), float(ray.available_resources().get("GPU", 0)))
"""


@pytest.mark.thorough
def test_two_processes_that_train_trials_share_one_gpu(tmp_path):
    """Ray is told of a GPU that is not there; TensorFlow finds none and computes on the CPU."""
    command = [sys.executable, "-c", SHARED_GPU, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.splitlines()[-1] == "2 0.0"


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
