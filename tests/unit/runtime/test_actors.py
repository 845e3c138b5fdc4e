"""Units of work without a cluster. With one: tests/system/on_ray/test_actors.py."""

import threading

import pytest

from transfer.config import WorkersConfig
from transfer.errors import ConfigError
from transfer.runtime.actors import Actors, Task


class Meeting:
    """Work of which no unit ends before another one has begun."""

    def __init__(self, parties):
        self._barrier = threading.Barrier(parties)

    def __call__(self, unit):
        self._barrier.wait(timeout=60)
        return -unit


class UntilClosed:
    """Work of which one unit fails, and any other goes on until nobody wants it."""

    def __init__(self):
        self._closed = threading.Event()

    def __call__(self, unit):
        if unit == "wrong":
            raise ConfigError("This unit is wrong.")
        assert self._closed.wait(timeout=60)

    def close(self):
        self._closed.set()


def test_a_unit_that_is_not_wanted_any_more_is_told_so():
    actors = Actors(UntilClosed, workers=WorkersConfig(), task=Task("wait"), at_once=2)
    with actors, pytest.raises(ConfigError, match="This unit is wrong"):
        list(actors.map(["wrong", "long"]))


def test_without_workers_units_are_done_here_in_order_and_two_at_once():
    read = []
    units = (read.append(unit) or unit for unit in range(6))
    with Actors(Meeting, 2, workers=WorkersConfig(), task=Task("meet"), at_once=2) as actors:
        answers = actors.map(units)
        assert next(answers) == (0, 0)
        assert len(read) <= 3
        assert list(answers) == [(unit, -unit) for unit in range(1, 6)]
