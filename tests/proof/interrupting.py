"""Runs that are interrupted in the middle, and how long it takes until they train again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.clusters import processes_titled
from tests.proxies import FaultProxy
from transfer.training.run import Run

LONGEST_S = 600
LONGEST_STEP_S = 0.5


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
            time.sleep(0.05)


class KillsOfWorkers:
    """Kills workers of a run whose storage is behind the proxy, one after the other.

    `plan`: for each, the part of a checkpoint whose writer is killed, and whether the proxy answers with a "reset"
    before storage has the part, or with a "lost response" after; or ("step", ""): any worker, at a random moment.
    Before each of these two checkpoints are written as a whole: one may have been on its way when the last worker was
    killed. ("start", ""): the first worker to come back after the kill before.
    """

    def __init__(self, proxy: FaultProxy, plan: list[tuple[str, str]], *, seed: int) -> None:
        self._proxy = proxy
        self._plan = list(plan)
        self._random = random.Random(seed)
        self._killed: float | None = None
        self.kills = 0
        self.seconds: list[float] = []
        """From kills to a checkpoint of what was trained after it."""
        self._begin()

    def _begin(self) -> None:
        self._part, manner = self._plan.pop(0) if self._plan else ("", "")
        self._arrays = self._whole = 0
        self._proxy.fail(manner or "reset", matches=self._is_now, kill=self._kill_at)
        if self._part == "start":
            threading.Thread(target=self._kill_new, args=(set(workers_of_this_cluster()),), daemon=True).start()

    def _is_now(self, method: str, path: str) -> bool:
        """Asked of each request: whether it is the part to be killed at."""
        if method != "PUT" or not ("/arrays/" in path or "/checkpoints/" in path):
            return False
        self._arrays = min(self._arrays + 1, 2) if "/arrays/" in path else 0
        part = ("entry", "weights", "optimizer")[self._arrays]
        if part == "entry":
            self._whole += 1
            if self._whole == 2 and self._killed is not None:
                self.seconds.append(time.monotonic() - self._killed)
                self._killed = None
            if self._whole == 2 and self._part == "step":
                threading.Timer(self._random.uniform(0, LONGEST_STEP_S), self._kill_any).start()
        return self._whole >= 2 + (part == "entry") and part == self._part

    def _kill_at(self, port: int) -> None:
        self._kill(_process_at(port, of_server=urlsplit(self._proxy.url).port))

    def _kill_any(self) -> None:
        self._kill(self._random.choice(workers_of_this_cluster()))

    def _kill_new(self, known: set[int]) -> None:
        while not (new := set(workers_of_this_cluster()) - known):
            time.sleep(0.05)
        self._kill(new.pop())

    def _kill(self, process: int) -> None:
        self.kills += 1
        self._begin()
        self._killed = time.monotonic()
        os.kill(process, signal.SIGKILL)


def workers_of_this_cluster() -> list[int]:
    """Ids of the processes of Ray Train's workers on the cluster that this process started."""
    return processes_titled("ray::RayTrainWorker")


def _process_at(port: int, *, of_server: int) -> int:
    """The process that is connected from this port to the server's. Connections to others may have the same port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {line[9]: [int(end.rpartition(":")[2], 16) for end in line[1:3]] for line in lines}
    sockets = {f"socket:[{inode}]" for inode, found in ends.items() if found == [port, of_server]}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return int(process.name)
    raise LookupError(f"no process has port {port}")
