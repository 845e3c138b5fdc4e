"""A driver is killed in publish, promote and dataset commit, at any moment and at each boundary, while others read."""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest

from tests.proof.amount import trials
from tests.proof.driver import Driver, copied, job_with_a_past
from tests.proof.figures import kind_of, note
from tests.proof.readers import Reader, assert_finished

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
COMMITS = (
    "datasets/pets/00000002.json",
    "models/pets/published/the-run/00000001.json",
    "models/pets/versions/00000002.json",
    "models/pets/promotions/00000002.json",
)


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    return job_with_a_past(tmp_path_factory.mktemp("past"))


@pytest.fixture
def fresh(past, storage):
    """Makes the job anew, each time on storage of its own."""
    numbers = itertools.count()
    return lambda: copied(past, storage.model_copy(update={"uri": f"{storage.uri}/{next(numbers)}"}))


def finish_by_repeating(job):
    """Do the job again, all of it; what it reads between is whole, and all is there in the end."""
    with Reader(job.config.storage) as reader:
        Driver(job).finish()
    assert_finished(job.config.storage)
    return reader.reads


def test_a_driver_killed_at_any_moment_tears_and_loses_nothing_and_its_repetition_finishes(fresh, storage):
    job = fresh()
    driver, started = Driver(job), time.monotonic()
    boundaries = len(driver.finish())
    between_s = (time.monotonic() - started) / boundaries
    assert_finished(job.config.storage)
    kills, reads, in_mid_work = trials(4, 160 if kind_of(storage) == "folder" else 40), 0, 0
    moments = random.Random(5)
    for kill in range(kills):
        job = fresh()
        with Reader(job.config.storage) as reader:
            driver = Driver(job)
            # Counted from a boundary that it has passed: how fast it is depends on what else the machine does.
            for _ in range(moments.randrange(boundaries)):
                driver.said()
            time.sleep(moments.uniform(0, between_s))
            driver.kill(SIGNALS[kill % 2])
        in_mid_work += driver.process.exitcode != 0
        reads += reader.reads + finish_by_repeating(job)
    assert in_mid_work
    note(
        f"driver killed at a random moment, {kind_of(storage)}",
        kills=kills,
        in_mid_work=in_mid_work,
        reads=reads,
        failures=0,
    )


def test_a_driver_killed_at_each_boundary_tears_and_loses_nothing_and_its_repetition_finishes(fresh, storage):
    boundaries = Driver(fresh()).finish()
    assert all(f"{moment} {committed}" in boundaries for moment in ("before", "after") for committed in COMMITS)
    each = list(itertools.product(range(len(boundaries)), SIGNALS))
    if kind_of(storage) == "S3":
        each = each[::3]  # Now the one signal, now the other; each takes seconds there.
    few = [(boundaries.index(f"before {name}"), sent) for name, sent in zip(COMMITS, SIGNALS * 2, strict=True)]
    kills, reads = trials(few, each), 0
    for number, sent in kills:
        job = fresh()
        with Reader(job.config.storage) as reader:
            driver = Driver(job, stop_at=number)
            for boundary in boundaries[: number + 1]:
                assert driver.said() == boundary
            driver.kill(sent)
        assert driver.process.exitcode == -sent
        reads += reader.reads + finish_by_repeating(job)
    note(
        f"driver killed at a boundary, {kind_of(storage)}",
        kills=len(kills),
        boundaries=len(boundaries),
        reads=reads,
        failures=0,
    )
