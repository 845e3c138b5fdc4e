"""Two processes that do the same thing at the same moment, again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.proof.driver import LONGEST_S, PROCESSES
from transfer.config import StorageConfig
from transfer.errors import TransferError
from transfer.storage import Store, open_store

RACERS = 2
Act = Callable[[Store, int, int], Iterator[Any]]
"""Of a store, the number of the race and that of the racer; yields what it came to, and lets go when it is closed."""


@dataclass(frozen=True)
class Outcome:
    """What a racer came to. `error`: name of the typed error that it ended with."""

    answer: Any = None
    error: str | None = None
    message: str = ""
    exit_code: int = 0


def race(act: Act, storage: StorageConfig, *, races: int) -> list[list[Outcome]]:
    """The outcomes of each race, racer by racer. Each racer is a process with a store of its own."""
    gate = PROCESSES.Barrier(RACERS)
    pipes = [PROCESSES.Pipe() for _ in range(RACERS)]
    processes = [
        PROCESSES.Process(target=_run, args=(act, storage, races, racer, dict(os.environ), gate, theirs))
        for racer, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        found = [[_next(ours) for ours, _ in pipes] for _ in range(races)]
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def _next(pipe: Any) -> Outcome:
    assert pipe.poll(LONGEST_S), "a racer says nothing"
    return pipe.recv()


def _run(act, storage, races, racer, environment, gate, told):
    os.environ.update(environment)
    store = open_store(storage)
    for number in range(races):
        attempt = act(store, number, racer)
        gate.wait(LONGEST_S)
        try:
            outcome = Outcome(next(attempt))
        except TransferError as error:
            outcome = Outcome(None, type(error).__name__, error.message, error.exit_code)
        gate.wait(LONGEST_S)
        attempt.close()
        told.send(outcome)
    told.recv()  # Until it is killed: a pipe that closes early would lose what was said last.
