"""CPU-seconds of a command and of everything that comes of it: children, daemons, and those that nobody waits for.

Counted by a control group of the kernel where one can be made, which is exact; else by looking at the processes again
and again, where what a process did after it was last seen is lost. A parent's `getrusage` would not do: it knows only
of children that it waited for, and nobody waits for Ray's daemons.
"""

from __future__ import annotations

import bisect
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

LOOK_EVERY_S = 0.1
LEFTOVERS_MAY_TAKE_S = 60.0
# Where version 2 of control groups is mounted: alone, or beside version 1.
_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage:
    """CPU-seconds over time, from the start of a command to the end of the last process that came of it."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._cpu_s: list[float] = []

    def note(self, cpu_s: float) -> None:
        """So many were used until now."""
        self._times.append(time.time())
        self._cpu_s.append(cpu_s)

    @property
    def started(self) -> float:
        """In seconds since 1970."""
        return self._times[0]

    @property
    def ended(self) -> float:
        """In seconds since 1970."""
        return self._times[-1]

    def between(self, start: float, end: float) -> float:
        """CPU-seconds between two moments, in seconds since 1970; within `LOOK_EVERY_S` they are shared out evenly."""
        return self._until(end) - self._until(start)

    def _until(self, moment: float) -> float:
        after = bisect.bisect_right(self._times, moment)
        if after in {0, len(self._times)}:
            return self._cpu_s[max(after - 1, 0)]
        (earlier, later), (less, more) = self._times[after - 1 : after + 1], self._cpu_s[after - 1 : after + 1]
        return less + (more - less) * (moment - earlier) / (later - earlier)


class Counter(Protocol):
    """Counts what comes of one command."""

    def command(self, command: Sequence[str]) -> list[str]:
        """What to start instead of the command."""

    def cpu_s(self) -> float:
        """CPU-seconds so far."""

    def alive(self) -> set[int]:
        """The processes that have not ended."""

    def close(self) -> None:
        """Leave nothing behind."""


class ControlGroup(Counter):
    """The kernel counts. Raises OSError or CalledProcessError where it may not be asked to."""

    def __init__(self) -> None:
        mount = next((mount for mount in _MOUNTS if (mount / "cgroup.controllers").exists()), None)
        if mount is None:
            raise FileNotFoundError("control groups of version 2 are not mounted")
        self._folder = Path(tempfile.mkdtemp(prefix="transfer-bench-", dir=mount))
        try:
            # A group can be there to be made and yet not to be joined.
            subprocess.run(self.command(["true"]), check=True, capture_output=True)
        except subprocess.CalledProcessError:
            self.close()
            raise

    def command(self, command: Sequence[str]) -> list[str]:
        """A shell joins the group and becomes the command."""
        return ["sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh", *command]

    def cpu_s(self) -> float:
        """CPU-seconds so far."""
        figures = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(figures["usage_usec"]) / 1e6

    def alive(self) -> set[int]:
        """The processes that have not ended."""
        return set(map(int, (self._folder / "cgroup.procs").read_text().split()))

    def close(self) -> None:
        """Remove the group."""
        self._folder.rmdir()


class MarkedProcesses(Counter):
    """Looks at all processes for those that inherited a mark in their environment."""

    def __init__(self) -> None:
        self._mark = f"TRANSFER_BENCH_MARK={uuid.uuid4().hex}"
        self._cpu_s: dict[tuple[int, int], float] = {}
        """By process number and start time, for numbers are used again."""
        self._alive: set[int] = set()

    def command(self, command: Sequence[str]) -> list[str]:
        """The command with the mark."""
        return ["env", self._mark, *command]

    def cpu_s(self) -> float:
        """CPU-seconds so far, of each process up to when it was last seen."""
        self._alive = set()
        for folder in Path("/proc").glob("[0-9]*"):
            # A process that ends meanwhile is not there any more; those of others may not be read.
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                process = _Process(folder)
                if process.id in self._cpu_s or self._mark.encode() in (folder / "environ").read_bytes():
                    self._cpu_s[process.id] = process.cpu_s
                    self._alive |= set() if process.has_ended else {int(folder.name)}
        return sum(self._cpu_s.values())

    def alive(self) -> set[int]:
        """The processes that had not ended when they were last looked at."""
        return self._alive

    def close(self) -> None:
        """There is nothing to leave behind."""


def best_counter() -> Counter:
    """A control group where that can be had."""
    try:
        return ControlGroup()
    except (OSError, subprocess.CalledProcessError):
        return MarkedProcesses()


def run_counted(command: Sequence[str], counter: Counter) -> tuple[str, Usage]:
    """Run a command until everything that came of it has ended. Returns what it printed, and what it used.

    Raises SystemExit with its errors when it fails, and when something that came of it does not end.
    """
    usage = Usage()
    # Files: whoever inherits a pipe could wait for its other end.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(counter.command(command), stdout=output, stderr=errors)
        try:
            _wait(process, counter, usage)
        finally:
            _end(process, counter)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise SystemExit(f"{errors.read()}\n{command} failed with exit code {process.returncode}")
        return output.read(), usage


def _wait(process: subprocess.Popen[bytes], counter: Counter, usage: Usage) -> None:
    ended: float | None = None
    while ended is None or counter.alive():
        usage.note(counter.cpu_s())
        if ended is None and process.poll() is not None:
            ended = time.monotonic()
        if ended is not None and time.monotonic() > ended + LEFTOVERS_MAY_TAKE_S:
            raise SystemExit(f"{process.args!r} left processes behind: {sorted(counter.alive())}")
        time.sleep(LOOK_EVERY_S)
    usage.note(counter.cpu_s())


def _end(process: subprocess.Popen[bytes], counter: Counter) -> None:
    """Leave nothing of an interrupted command behind."""
    while pids := counter.alive() | ({process.pid} if process.poll() is None else set()):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_EVERY_S)
        counter.cpu_s()
    counter.close()


class _Process:
    """What the kernel says about a process (`man proc_pid_stat`)."""

    def __init__(self, folder: Path) -> None:
        # The name, in brackets, may hold anything.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        self.id = (int(folder.name), int(fields[19]))
        self.has_ended = fields[0] in "ZX"
        self.cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
