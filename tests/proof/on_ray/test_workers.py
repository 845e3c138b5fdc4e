"""A worker dies, hangs or goes for good: training goes on, and ends as if nothing had happened. Or it diverges."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest
import ray

from tests.digits import digits_config, ingest_some_digits, store_some_digits
from tests.proof.amount import trials
from tests.proof.another_node import another_node
from tests.proof.figures import note
from tests.proof.interrupting import Interruption, KillsOfWorkers, workers_of_this_cluster
from tests.trained import largest_difference, trained_in_one_process
from transfer.errors import DivergedError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.distributed import train_on_workers
from transfer.training.heartbeat import READING
from transfer.training.run import open_run

TOLERANCE = 1e-5
# 2 and 3 workers divide the batch.
TRAINING = {"batch_size": 18, "checkpoint_steps": 1}
# A machine that is busy may look like one that hangs; what is learned is the same.
PATIENT = {"count": 2, "max_failures": 20}
# In each run some, since a run has 24 steps: the part of a checkpoint, and whether storage has it by then.
KILLS = [
    [("step", ""), ("optimizer", "reset"), ("start", ""), ("weights", "reset")],
    [("entry", "lost response"), ("weights", "lost response"), ("step", ""), ("start", "")],
    [("optimizer", "lost response"), ("entry", "reset"), ("step", ""), ("start", "")],
]
# How many workers, which of them hangs, and workers.hang_timeout_s. Of two, the other one notices within 120 s that
# TensorFlow's heartbeats have stopped.
HANGING = [(2, 1, 5), (1, 0, 5), (2, 0, 120)]
# Longer than the first step takes to compile on a busy machine.
STALL_TIMEOUT_S = 30
STEPS_OF_FIRST_PHASE = 16


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def new_run(digits, run_id, **changes):
    source, dataset = digits
    config = digits_config(source, str(source.parent / "storage"), training=TRAINING, features="never", **changes)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id)


@pytest.fixture(scope="module")
def uninterrupted(digits):
    """The end of the run that one process trains."""
    return trained_in_one_process(new_run(digits, "one-process"))


def difference_from(uninterrupted, run):
    """Largest one between the weights that runs ended with, whose epochs were the same."""
    ended = Checkpoints(run).complete()
    assert [row.epoch for row in ended.progress.history] == [0, 1, 2]
    assert [row.accuracy for row in ended.progress.history] == [row.accuracy for row in uninterrupted.progress.history]
    return largest_difference(ended.weights, uninterrupted.weights)


@pytest.mark.parametrize("seed", range(trials(1, 3)))
def test_workers_killed_in_steps_and_between_the_parts_of_checkpoints_change_nothing(
    ray_cluster, digits, uninterrupted, faulty_storage, fault_proxy, seed
):
    source, _ = digits
    config = digits_config(source, faulty_storage.model_dump(), training=TRAINING, features="never", workers=PATIENT)
    store = open_store(config.storage)
    run = open_run(store, config, store_some_digits(store), run_id="reset")
    # In short one in a checkpoint: those in a step are tests/proof/test_nodes.py's, too.
    plan = trials(KILLS[seed][1:2], KILLS[seed])
    kills = KillsOfWorkers(fault_proxy, plan, seed=seed)
    train_on_workers(run)
    assert kills.kills == len(plan)
    difference = difference_from(uninterrupted, run)
    assert difference < TOLERANCE
    note(
        "worker killed in a step, in a checkpoint or at its start",
        kills=kills.kills,
        failures=0,
        seconds_to_training_again=f"{min(kills.seconds):.0f} to {max(kills.seconds):.0f}",
        largest_weight_difference=difference,
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("count", "which", "hang_timeout_s"), HANGING[: trials(1, len(HANGING))])
def test_a_worker_that_hangs_is_named_and_ended_and_changes_nothing(
    ray_cluster, digits, uninterrupted, capfd, count, which, hang_timeout_s
):
    run_id = f"hanging-{count}-{which}-{hang_timeout_s}"
    run = new_run(digits, run_id, workers={**PATIENT, "count": count, "hang_timeout_s": hang_timeout_s})
    stopped = []

    def stop_one():
        stopped.append(workers_of_this_cluster()[which])
        os.kill(stopped[0], signal.SIGSTOP)

    with Interruption(run, stop_one) as interruption:
        train_on_workers(run)
    difference = difference_from(uninterrupted, run)
    assert difference < TOLERANCE
    heard(capfd, rf"of run {run_id} \(process {stopped[0]} on ")
    note(
        f"worker {which} of {count} stopped by SIGSTOP, workers.hang_timeout_s {hang_timeout_s}",
        trials=1,
        failures=0,
        seconds_to_training_again=round(interruption.seconds),
        largest_weight_difference=difference,
    )


@pytest.mark.thorough
def test_a_rank_that_waits_for_its_images_for_ever_is_named_and_ended_and_changes_nothing(
    ray_cluster, uninterrupted, digits, faulty_storage, fault_proxy, capfd
):
    source, _ = digits
    storage = faulty_storage.model_copy(update={"cache_size_bytes": 0}).model_dump()
    workers = {**PATIENT, "stall_timeout_s": STALL_TIMEOUT_S}
    config = digits_config(source, storage, training=TRAINING, features="never", workers=workers)
    store = open_store(config.storage)
    run = open_run(store, config, store_some_digits(store), run_id="stalled")
    let_go, steps = threading.Event(), 0

    def is_a_shard_of_the_second_phase(method, path):
        nonlocal steps
        steps += method == "PUT" and "/checkpoints/" in path
        return method == "GET" and "/shards/" in path and steps >= STEPS_OF_FIRST_PHASE

    fault_proxy.fail("held", held_until=let_go, matches=is_a_shard_of_the_second_phase)
    try:
        train_on_workers(run)
    finally:
        let_go.set()
    assert fault_proxy.faults == 1
    difference = difference_from(uninterrupted, run)
    assert difference < TOLERANCE
    heard(capfd, rf"Rank [01] of run stalled \(process \d+ on \S+\) has been {READING} for \d+ s, and is ended")
    note(
        f"one of two ranks waits for its images, workers.stall_timeout_s {STALL_TIMEOUT_S}",
        trials=1,
        failures=0,
        largest_weight_difference=difference,
    )


def heard(capfd, message):
    """Wait until Ray has brought a message of its controller to this process's output."""
    said, until = "", time.monotonic() + 60
    while not re.search(message, said):
        assert time.monotonic() < until, said[-5000:]
        said += "".join(capfd.readouterr())
        time.sleep(0.1)


@pytest.mark.thorough
def test_of_three_workers_two_go_on_when_the_machine_of_one_is_gone(ray_cluster, digits, uninterrupted):
    cpus = ray.cluster_resources()["CPU"] / 2
    workers = {**PATIENT, "count": 3, "min_count": 2, "cpus_per_worker": cpus}
    run = new_run(digits, "shrinking", workers=workers)
    sizes = []

    def take_it_away():
        sizes.append(len(workers_of_this_cluster()))
        node.kill()

    with another_node(cpus) as node, Interruption(run, take_it_away) as interruption:
        train_on_workers(run)
    assert sizes == [3]
    difference = difference_from(uninterrupted, run)
    assert difference < TOLERANCE
    note(
        "cluster shrunk from three workers to two",
        trials=1,
        failures=0,
        seconds_to_training_again=round(interruption.seconds),
        largest_weight_difference=difference,
    )


def test_divergence_is_an_answer_and_not_retried(ray_cluster, digits):
    phases = [{"unfreeze": 0, "epochs": 5, "learning_rate": 1e38, "optimizer": "sgd"}]
    run = new_run(digits, "diverging", workers=PATIENT, phases=phases)
    with pytest.raises(DivergedError, match="Lower the phase's learning_rate"):
        train_on_workers(run)
