"""Runs that are interrupted in the middle, and how long it takes until they train again."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fault_proxy import FaultProxy
from tests.processes import descendants, processes_titled
from transfer.training.run import Run

LONGEST_S = 600


class Interruption:
    """Does something to a run when it has come so many steps, once, while the `with` block trains it."""

    def __init__(self, run: Run, act: Callable[[], None], *, steps: int = 3) -> None:
        self._run = run
        self._act = act
        self._steps = steps
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seconds: float | None = None
        """Until there was a checkpoint of what was trained after it."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._thread.join(LONGEST_S)

    def _watch(self) -> None:
        number = self._wait_for(lambda _, progress: progress["global_step"] >= self._steps)
        self._act()
        begun = time.monotonic()
        # One more may have been on its way.
        self._wait_for(lambda newest, _: newest >= number + 2)
        self.seconds = time.monotonic() - begun

    def _wait_for(self, is_so: Callable[[int, dict], bool]) -> int:
        while True:
            latest = self._run.checkpoints.latest()
            if latest and is_so(latest[0], latest[1]["progress"]):
                return latest[0]
            time.sleep(0.02)


class KillsAtCheckpoints:
    """Kills whoever writes a checkpoint, at one of its parts after the other: before or after storage has it.

    A checkpoint is written as a whole before each kill, so that there is something new to go on from.
    """

    def __init__(self, proxy: FaultProxy, plan: list[tuple[str, str]]) -> None:
        self._proxy = proxy
        self._plan = list(plan)
        self._begin()
        self.seconds: list[float] = []
        """From each kill to the next checkpoint."""

    def _begin(self) -> None:
        self._part, self._manner = self._plan.pop(0) if self._plan else ("", "reset")
        self._arrays = self._whole = 0
        self._killed: float | None = None
        self._proxy.fail(self._manner, matches=self._is_now, kill=self._kill)

    def _is_now(self, method: str, path: str) -> bool:
        """Seen of each request: whether it is the part to be killed at."""
        if method != "PUT" or not ("/arrays/" in path or "/checkpoints/" in path):
            return False
        self._arrays = self._arrays + 1 if "/arrays/" in path else 0
        part = ("entry", "weights", "optimizer")[self._arrays]
        if part == "entry":
            self._whole += 1
            if self._killed is not None and self._whole == 1:
                self.seconds.append(time.monotonic() - self._killed)
        return self._whole >= 1 and part == self._part

    def _kill(self, port: int) -> None:
        os.kill(_process_at(port), signal.SIGKILL)
        self._begin()
        self._killed = time.monotonic()


def workers_of_this_cluster() -> list[int]:
    """Ids of the processes of Ray Train's workers on the cluster that this process started."""
    ours = set(descendants(os.getpid()))
    titled = processes_titled(lambda title: title.startswith(b"ray::RayTrainWorker"))
    return [process for process in titled if process in ours]


def _process_at(port: int) -> int:
    """The process whose connection has this port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inode = next(line[9] for line in lines if int(line[1].rpartition(":")[2], 16) == port)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) == f"socket:[{inode}]":
                return int(descriptor.parts[2])
    raise LookupError(f"no process has port {port}")
