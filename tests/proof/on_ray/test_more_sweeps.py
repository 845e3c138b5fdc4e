"""More kinds of sweeps on a real Ray cluster: over hosts and workers, drawn, of a population, two on a GPU."""

import subprocess
import sys

import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.sweeping import GRID, statuses, swept
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run
from transfer.tuning.driver import run_sweep


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def test_several_hosts_divide_the_trials_and_find_the_same(ray_cluster, digits):
    # As many as the cluster has CPUs; the trials of a pack stay together.
    _, outcome = swept(digits, GRID, name="hosts", workers=1)
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
    assert Checkpoints(load_run(open_store(config.storage), population.winner.run_id, config)).complete()


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
from transfer.tuning.driver import _start_hosts
from transfer.tuning.space import fixed_trials
from transfer.tuning.sweep import open_sweep
from pathlib import Path

source, dataset = ingest_some_digits(Path(sys.argv[1]))
sweep = {"space": {"phases.0.learning_rate": [1e-3, 1e-2, 1e-1]}, "search": "grid", "gpus_per_trial": 0.5}
config = digits_config(
    source, str(source.parent / "storage"), sweep=sweep, workers={"count": 1, "gpus_per_worker": 1}
)
ray.init("local", num_cpus=4, num_gpus=1, include_dashboard=False)
opened = open_sweep(open_store(config.storage), config, dataset)
hosts = _start_hosts(opened, fixed_trials(config))
ray.get([host.ready.remote() for host in hosts])
print(len(hosts), float(ray.available_resources().get("GPU", 0)))
"""


def test_two_processes_that_train_trials_share_one_gpu(tmp_path):
    """Ray is told of a GPU that is not there; TensorFlow finds none and computes on the CPU."""
    command = [sys.executable, "-c", SHARED_GPU, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.splitlines()[-1] == "2 0.0"
