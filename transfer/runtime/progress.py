"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines in a log. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
LINE_INTERVAL_S = 10.0


class _Process:
    is_hidden = False


def progress(
    name: str, *, total: int | None = None, unit: str = "images", stays: bool = True
) -> AbstractContextManager[Advance]:
    """Show the progress of work while the block runs. Without work (`total` 0) nothing is shown.

    Yields a function that takes the number of units done since its last call. `total`: None if it is unknown. `stays`:
    whether the final state stays visible.
    """
    if total == 0 or not is_shown():
        return no_progress()
    return (_bar if sys.stderr.isatty() else _lines)(name, total, unit, stays)


@contextmanager
def hidden() -> Iterator[None]:
    """Show no progress in this process while the block runs; warnings and errors are still shown."""
    before, _Process.is_hidden = _Process.is_hidden, True
    try:
        yield
    finally:
        _Process.is_hidden = before


def is_shown() -> bool:
    """Whether this process shows progress."""
    return not _Process.is_hidden


@contextmanager
def no_progress() -> Iterator[Advance]:
    """Like `progress`, without showing anything, for work whose progress is shown elsewhere."""
    yield lambda _count: None


@contextmanager
def _bar(name: str, total: int | None, unit: str, stays: bool) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=not stays) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(name: str, total: int | None, unit: str, stays: bool) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0

    def show() -> None:
        elapsed = max(time.monotonic() - started, 1e-9)
        rate = done / elapsed
        of_total = f"/{total:,}" if total is not None else ""
        text = f"{name}: {done:,}{of_total} {unit}, {rate:,.0f} {unit}/s"
        if total is not None and 0 < done < total:
            text += f", {(total - done) / rate:,.0f} s left"
        # Not with `print`, whose output Ray Train's workers show twice.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= LINE_INTERVAL_S:
            last = time.monotonic()
            show()

    yield advance
    if stays:
        show()
