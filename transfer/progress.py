"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines in a log. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
LINE_INTERVAL_S = 10.0


@contextmanager
def progress(name: str, *, total: int | None = None, unit: str = "images") -> Iterator[Advance]:
    """Show the progress of one piece of work while the block runs.

    Yields a function to call with the number of units done since the last call. `total` may be unknown (None).
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(name, total, unit) as advance:
        yield advance


@contextmanager
def _bar(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _lines(name: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    done = 0

    def line() -> str:
        elapsed = max(time.monotonic() - started, 1e-9)
        rate = done / elapsed
        of_total = f"/{total:,}" if total is not None else ""
        text = f"{name}: {done:,}{of_total} {unit}, {rate:,.0f} {unit}/s"
        if total is not None and 0 < done < total:
            text += f", {(total - done) / rate:,.0f} s left"
        return text

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= LINE_INTERVAL_S:
            last = time.monotonic()
            print(line(), file=sys.stderr, flush=True)  # noqa: T201 - this module is where progress is printed

    yield advance
    print(line(), file=sys.stderr, flush=True)  # noqa: T201
