"""Who holds up a group is told from what its ranks are at, and for how long."""

from __future__ import annotations

import pytest

from transfer.training import heartbeat as pulse_module
from transfer.training.heartbeat import (
    READING,
    READY,
    SAVING,
    TOGETHER,
    Heartbeat,
    beating,
    during,
    heartbeat,
    holding_up,
)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(pulse_module.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_what_training_is_at_is_told_with_its_time(clock):
    with beating():
        clock(3)
        assert heartbeat() == Heartbeat(READY, 3)
        with during(TOGETHER):
            clock(2)
            assert heartbeat() == Heartbeat(TOGETHER, 2)
        clock(1)
        assert heartbeat() == Heartbeat(READING, 1)
        with during(SAVING):
            assert heartbeat() == Heartbeat(SAVING, 0)
    assert heartbeat() is None


def test_a_step_that_fails_leaves_nothing_to_watch():
    with pytest.raises(ValueError, match="in a step"), beating(), during(TOGETHER):
        raise ValueError("in a step")
    assert heartbeat() is None


def test_where_nobody_watches_nothing_is_told():
    with during(TOGETHER):
        assert heartbeat() is None


@pytest.mark.parametrize(
    ("heartbeats", "held_up_by"),
    [
        ([(TOGETHER, 11), (READING, 11)], [1]),
        ([(SAVING, 12), (TOGETHER, 11)], [0]),
        ([(TOGETHER, 11), (READY, 500), (TOGETHER, 11)], [1]),
        # One of these may hang: which one, they do not know themselves.
        ([(TOGETHER, 11), (TOGETHER, 12)], [0, 1]),
        ([(READING, 11)], [0]),
        # Somebody came further just now: the others wait for nothing else.
        ([(TOGETHER, 11), (READING, 9)], []),
        ([(SAVING, 500), (TOGETHER, 1)], []),
        # Getting ready takes as long as it takes.
        ([(READY, 500), (READY, 500)], []),
        ([], []),
    ],
)
def test_ranks_that_hold_up_others_are_told_from_those_that_wait_for_them(heartbeats, held_up_by):
    group = {rank: Heartbeat(*each) for rank, each in enumerate(heartbeats)}
    assert holding_up(group, timeout_s=10) == held_up_by
