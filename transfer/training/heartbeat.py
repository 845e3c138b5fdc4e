"""What the training in this process is doing, and for how long, for the watchdog.

Module-level state: a process trains one run, and the watchdog calls `heartbeat()` from another thread without a
reference to the trainer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

READY = "getting ready"
READING = "waiting for its next batch"
TOGETHER = "in a step or a sum with the other ranks"
SAVING = "writing a checkpoint"


@dataclass(frozen=True)
class Heartbeat:
    """What a rank is doing, and for how many seconds."""

    doing: str
    seconds: float


_doing: tuple[str, float] | None = None


@contextmanager
def beating() -> Iterator[None]:
    """Report heartbeats while the block, which trains a run, is running; its first state is READY."""
    global _doing  # noqa: PLW0603 - the module's docstring says why
    _doing = (READY, time.monotonic())
    try:
        yield
    finally:
        _doing = None


@contextmanager
def during(doing: str) -> Iterator[None]:
    """Report `doing` during the block, and READING after it. Does nothing outside of `beating`."""
    global _doing  # noqa: PLW0603
    if _doing is None:
        yield
        return
    _doing = (doing, time.monotonic())
    yield
    _doing = (READING, time.monotonic())


def heartbeat() -> Heartbeat | None:
    """What training is doing; None if this process does not train, or has ended training."""
    found = _doing
    return None if found is None else Heartbeat(found[0], time.monotonic() - found[1])


def holding_up(heartbeats: Mapping[int, Heartbeat], *, timeout_s: float) -> list[int]:
    """The ranks that hold up a group in which no rank has made progress for `timeout_s`; else none.

    These are the ranks that are busy with something of their own while the others wait for them in a step. If all ranks
    are in a step, it is all of them, since only the collective knows which one is missing. `heartbeats`: one for each
    rank that still trains.
    """
    if all(each.doing == READY for each in heartbeats.values()):
        return []  # There is no limit for loading a base and computing features.
    if any(each.seconds < timeout_s for each in heartbeats.values()):
        return []
    alone = [rank for rank, each in heartbeats.items() if each.doing != TOGETHER]
    return alone or list(heartbeats)
