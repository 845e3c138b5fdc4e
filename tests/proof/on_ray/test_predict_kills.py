"""A folder of predictions while a worker and the driver are killed: no row is lost, and none is there twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from tests.clusters import processes_titled
from tests.digits import digits_config, write_some_digits
from tests.exported import publish_untrained
from transfer import jobs
from transfer.config import WorkersConfig
from transfer.config.reference import render
from transfer.registry import prediction_parts

LONGEST_WAIT_S = 300
ROWS = 4
DRIVER = f"""
import sys
from transfer import jobs
from transfer.config import load_config
from transfer.registry import prediction_parts
prediction_parts.FEWEST_ROWS = {ROWS}
jobs.predict(load_config(sys.argv[1]), images=sys.argv[2], output=sys.argv[3])
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A configuration, its images, and what is predicted for each by a job that nobody disturbs."""
    folder = tmp_path_factory.mktemp("digits")
    images = write_some_digits(folder / "images")
    config = digits_config(images, str(folder / "storage"))
    publish_untrained(config)
    jobs.predict(config, images=str(images), output=str(folder / "expected.parquet"))
    return config, images, pq.read_table(folder / "expected.parquet").to_pylist()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(prediction_parts, "FEWEST_ROWS", ROWS)


def wait_for_a_part(folder):
    until = time.monotonic() + LONGEST_WAIT_S
    while not list(folder.glob("part-*")) and time.monotonic() < until:
        time.sleep(0.02)


def assert_complete(folder, expected):
    rows = pq.read_table(folder).to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert (folder / "_SUCCESS").exists()


def test_a_job_whose_worker_is_killed_predicts_each_image_once(ray_cluster, published, tmp_path):
    config, images, expected = published
    folder, killed = tmp_path / "answers", []

    def kill_one():
        wait_for_a_part(folder)
        until = time.monotonic() + LONGEST_WAIT_S
        while not killed and time.monotonic() < until:
            for process in processes_titled("ray::PredictionWork")[-1:]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    with_workers = config.model_copy(update={"workers": WorkersConfig(count=2)})
    done = jobs.predict(with_workers, images=str(images), output=f"{folder}/")
    killer.join()
    assert killed
    assert done.images == len(expected)
    assert_complete(folder, expected)


def test_a_job_whose_driver_is_killed_is_continued_by_another(published, tmp_path):
    config, images, expected = published
    file, folder = tmp_path / "config.yaml", tmp_path / "answers"
    file.write_text(render(config))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, file, images, f"{folder}/"])
    wait_for_a_part(folder)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    left = {path.name: path.stat().st_ino for path in folder.glob("part-*")}
    assert 0 < len(left) < len(expected) // ROWS
    done = jobs.predict(config, images=str(images), output=f"{folder}/")
    assert (done.images, done.errors) == (len(expected), 0)
    assert {name: (folder / name).stat().st_ino for name in left} == left
    assert_complete(folder, expected)
