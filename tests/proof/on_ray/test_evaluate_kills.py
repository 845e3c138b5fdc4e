"""An evaluation on Ray actors one of which is killed: every image once, as in one process."""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.clusters import processes_titled
from tests.digits import digits_config, ingest_digits_in_shards
from tests.reports import load_report
from transfer.config import WorkersConfig
from transfer.ensure import evaluate_anew, fit
from transfer.evaluation import units
from transfer.storage import open_store
from transfer.training.run import open_run

LONGEST_WAIT_S = 300


def kill_one_in_the_middle(store, folder, killed):
    """Kill an actor as soon as some predictions are stored."""
    until = time.monotonic() + LONGEST_WAIT_S
    while not killed and time.monotonic() < until:
        at_work = processes_titled("ray::EvaluationWork.do")
        if at_work and any("part-" in item.name for item in store.list(f"{folder}/reports/")):
            with suppress(ProcessLookupError):
                os.kill(at_work[-1], signal.SIGKILL)
                killed.append(at_work[-1])
        time.sleep(0.02)


def test_no_image_is_lost_or_counted_twice_when_an_actor_is_killed(ray_cluster, tmp_path, monkeypatch):
    config, dataset = ingest_digits_in_shards(tmp_path)
    # Images go through the whole network, one shard at a time: the actors are at work for a while.
    config = digits_config(config.dataset.source, config.storage.uri, dataset=config.dataset, features="never")
    run = open_run(open_store(config.storage), config, dataset)
    fit(run, dataset)
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)
    workers = WorkersConfig(count=2, cpus_per_worker=0.5)
    on_actors = replace(run, config=config.model_copy(update={"workers": workers}))
    killed = []
    arguments = open_store(config.storage), run.folder, killed
    watcher = threading.Thread(target=kill_one_in_the_middle, args=arguments, daemon=True)
    watcher.start()
    report, predictions = load_report(run, evaluate_anew(on_actors, split="train"))
    watcher.join()
    assert killed

    expected, _ = load_report(run, evaluate_anew(run, split="train"))
    assert len(dataset.shards_of("train")) > 3
    assert report.metrics.images == len(set(predictions.keys)) == len(predictions.keys) == dataset.rows("train")
    assert report.metrics.confusion == expected.metrics.confusion
    assert report.metrics.loss == pytest.approx(expected.metrics.loss, rel=1e-5)
