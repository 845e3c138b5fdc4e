"""What training in this process is at, and since when, for those who watch over it.

There is one for the process, as training is: a watcher asks from another thread, and has nothing else in its hands.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

READY = "getting ready"
READING = "waiting for its next batch"
TOGETHER = "in a step, or adding up, with the other ranks"
SAVING = "writing a checkpoint"


@dataclass(frozen=True)
class Heartbeat:
    """Something that a rank is at, and for how long it has been."""

    doing: str
    seconds: float


_doing: tuple[str, float] | None = None


@contextmanager
def beating() -> Iterator[None]:
    """Training is all that happens in the block. It begins with getting ready."""
    global _doing  # noqa: PLW0603 - who asks has no object of this thread's
    _doing = (READY, time.monotonic())
    try:
        yield
    finally:
        _doing = None


@contextmanager
def during(doing: str) -> Iterator[None]:
    """The block is about `doing`; after it comes the next batch. Says nothing where nobody watches."""
    global _doing  # noqa: PLW0603
    if _doing is None:
        yield
        return
    _doing = (doing, time.monotonic())
    yield
    _doing = (READING, time.monotonic())


def heartbeat() -> Heartbeat | None:
    """What training is at; None where there is none, or none any more."""
    found = _doing
    return None if found is None else Heartbeat(found[0], time.monotonic() - found[1])


def holding_up(heartbeats: Mapping[int, Heartbeat], *, timeout_s: float) -> list[int]:
    """The ranks that keep a group from going on, when none of its ranks has come further for `timeout_s`.

    Those that are at something of their own, while others wait for them in a step; all of them, when all are in one:
    who is missing there only the collective could tell. `heartbeats`: of each rank that still trains.
    """
    if all(each.doing == READY for each in heartbeats.values()):
        return []  # How long a base takes to load, or the frozen part to be computed, cannot be told.
    if any(each.seconds < timeout_s for each in heartbeats.values()):
        return []
    alone = [rank for rank, each in heartbeats.items() if each.doing != TOGETHER]
    return alone or list(heartbeats)
