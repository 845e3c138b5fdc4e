"""Units of work mapped over actors, which end themselves here. What extraction makes of them is in test_extract.py."""

import itertools
import os
import signal
import time

import pytest

from transfer.config import WorkersConfig
from transfer.errors import ConfigError
from transfer.runtime.actors import Actors, Task

pytestmark = pytest.mark.usefixtures("ray_cluster")

PREDICT = Task("predict")


class Squaring:
    """Squares numbers. The first process that comes to a unit of `deadly` dies of it."""

    def __init__(self, folder, deadly=()):
        self._folder, self._deadly = folder, deadly

    def __call__(self, unit):
        mark = self._folder / str(unit)
        if unit in self._deadly and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == "wrong":
            raise ConfigError("This unit is wrong.")
        # The first is the slowest, so that others come before it.
        time.sleep(0.2 if unit == 0 else 0.0)
        return unit**2


def actors(tmp_path, *, deadly=(), at_once=1, **workers):
    settings = {"count": 2, "cpus_per_worker": 0.5, **workers}
    return Actors(Squaring, tmp_path, deadly, workers=WorkersConfig(**settings), task=PREDICT, at_once=at_once)


def test_units_of_actors_that_die_are_answered_once_and_in_order(tmp_path):
    with actors(tmp_path, deadly={0, 7, 8}, at_once=2) as pool:
        answers = list(pool.map(iter(range(20)), in_order=True))
        assert answers == [(unit, unit**2) for unit in range(20)]
        assert {path.name for path in tmp_path.iterdir()} == {"0", "7", "8"}
        with pytest.raises(ConfigError, match="This unit is wrong"):
            list(pool.map([1, "wrong"]))


def test_no_more_units_are_read_than_fit_on_the_actors_though_the_first_one_takes_long(tmp_path):
    read = []
    units = (read.append(unit) or unit for unit in itertools.count())
    with actors(tmp_path) as pool:
        assert next(pool.map(units, in_order=True)) == (0, 0)
        assert len(read) <= 4  # twice as many as actors
