"""Where a process's time and memory go."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Stopwatch:
    """Adds up seconds by name. Time spent under a name within another one counts for the inner name only."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.ended = 0.0
        """When the last name ended, in seconds since 1970."""
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block for a name."""
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()
            self.ended = time.time()

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """From now on, count the calls of a module's or class's function for a name."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, watched)

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class PeakMemory:
    """Peak memory of this process in MiB.

    Looked up every few milliseconds: the kernel keeps a peak of everything that is resident, but not of the anonymous
    part, without the pages of mapped files, which it takes back whenever it likes.
    """

    def __init__(self) -> None:
        self._anonymous = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """The peaks so far: of the anonymous part, and of all that was resident."""
        self._stop.set()
        self._thread.join()
        # Not ru_maxrss: a new process inherits that of the one it was forked from.
        return {"anonymous": self._anonymous, "resident": status_mib("VmHWM")}

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self._anonymous = max(self._anonymous, status_mib("RssAnon"))


def status_mib(field: str) -> float:
    """A size from what the kernel says about this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024
