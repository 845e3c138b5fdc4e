"""Sweeps that lose an actor, or are killed as a whole: they go on, and end as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.clusters import processes_titled
from tests.digits import GRID, SPACE, digits_config, ingest_some_digits, statuses, swept
from transfer.config.reference import render
from transfer.storage import open_store


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def actors():
    """Processes that train trials; Ray sets the title to what an actor is doing."""
    return processes_titled("ray::TrialActor")


@pytest.mark.thorough
def test_an_actor_that_is_killed_is_replaced_and_its_trial_goes_on(ray_cluster, digits):
    killed = []
    runs = open_store(digits_config(digits[0], str(digits[0].parent / "storage")).storage)
    known_runs, known_actors = {item.name for item in runs.list("runs/")}, set(actors())

    def has_trained():
        return any("/checkpoints/" in item.name for item in runs.list("runs/") if item.name not in known_runs)

    def kill_once():
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if has_trained() and (new := set(actors()) - known_actors):
                killed.append(new.pop())
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_once)
    killer.start()
    _, outcome = swept(digits, GRID, name="actor-killed", epochs=8)
    killer.join()
    assert killed
    assert statuses(outcome.result) == ["finished"] * 4
    _, undisturbed = swept(digits, GRID, name="actor-alive", epochs=8)
    assert [trial.value for trial in outcome.result.trials] == [trial.value for trial in undisturbed.result.trials]


def test_a_killed_sweep_goes_on_with_the_same_command_and_repeats_no_finished_trial(digits, tmp_path):
    source, _ = digits
    storage = str(tmp_path / "storage")
    phases = [{"unfreeze": 0, "epochs": 8, "learning_rate": 1e-3}]
    config = digits_config(source, storage, phases=phases, sweep=GRID, publish={"parity_images": 8})
    path = tmp_path / "config.yaml"
    path.write_text(render(config))
    command = [sys.executable, "-m", "transfer", "sweep", str(path), "--json"]
    store = open_store(config.storage)

    def ended():
        return {item.name for item in store.list("sweeps/") if "/trials/" in item.name}

    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as sweep:
        while len(ended()) < 2:
            assert sweep.poll() is None
            time.sleep(0.1)
        # With everything that it started.
        os.killpg(sweep.pid, signal.SIGKILL)
    finished = ended()
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert answer["trials"] == {"finished": 4, "stopped": 0, "failed": 0}
    assert answer["version"] == 1
    assert answer["winner"].keys() == SPACE.keys()
    # What was written of trials that had ended is all there is of them.
    assert finished <= ended()
    assert len(ended()) == 4
