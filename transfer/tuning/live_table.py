"""Shows the trials of a sweep on stderr while it runs: on a terminal a live table, in a log a line for each trial."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from transfer.catalog.run import EpochRow
from transfer.runtime.numbers import duration
from transfer.runtime.progress import is_shown
from transfer.tuning.records import TrialRecord, best_first, keys_of, metric_text, short_names, value_text, winner_of

# Lines of a terminal that are not trials: the header, the caption, and the prompt afterwards.
_OTHER_LINES = 4
# Width in characters of all that is not a value: trial, epoch, metric, status, seconds, and the space around them.
_OTHER_COLUMNS = 46


@dataclass
class _Shown:
    """The state of one trial."""

    number: int
    values: dict[str, Any]
    epochs: int = 0
    value: float | None = None
    status: str = "running"
    seconds: float = 0.0
    record: TrialRecord | None = None
    """None until the trial has ended."""

    @property
    def reason(self) -> str | None:
        return self.record.reason if self.record else None

    def see(self, record: TrialRecord) -> None:
        self.epochs, self.value, self.seconds = len(record.rows), record.value, record.seconds
        self.status, self.record = record.status, record


class TrialTable:
    """Shows the trials of a sweep while the block runs. All calls come from one thread.

    A trial that was interrupted or failed may be started again; its epochs are then counted from 0.
    """

    def __init__(self, metric: Literal["accuracy", "loss"], *, total: int | None = None) -> None:
        """`total`: number of trials of the whole sweep, if it is known."""
        self.metric = metric
        self.total = total
        self._trials: dict[int, _Shown] = {}
        self._live: Live | None = None
        self._handlers: list[logging.StreamHandler[Any]] = []

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and is_shown():
            on_stderr = [each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler)]
            self._handlers = [handler for handler in on_stderr if handler.stream is sys.stderr]
            console = Console(stderr=True)
            self._live = Live(self.rendered(**_size(console)), console=console, vertical_overflow="crop")
            self._live.start()
            self._point_handlers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
            self._point_handlers()

    def started(self, number: int, values: dict[str, Any]) -> None:
        """Show that a trial has begun."""
        self._trials[number] = _Shown(number, values)
        self._refresh()

    def epoch(self, number: int, row: EpochRow, value: float | None) -> None:
        """Show that a trial has finished an epoch, after which the metric is `value`."""
        trial = self._trials[number]
        trial.epochs += 1
        trial.seconds += row.seconds
        trial.value = value
        self._refresh()

    def ended(self, record: TrialRecord) -> None:
        """Show that a trial has ended. `started` need not have been called."""
        trial = self._trials.setdefault(record.number, _Shown(record.number, record.values))
        trial.see(record)
        if self._live is None and is_shown():
            print(self._line(trial), file=sys.stderr, flush=True)  # noqa: T201 - off a terminal this is the table
        self._refresh()

    def _point_handlers(self) -> None:
        """Let log handlers write to the present `sys.stderr`, which prints above the table while the table is shown."""
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def _refresh(self) -> None:
        if self._live:
            self._live.update(self.rendered(**_size(self._live.console)))

    def _best(self) -> _Shown | None:
        """The trial that would win if the sweep ended now."""
        best = winner_of(self._ended(), self.metric)
        return self._trials[best.number] if best else None

    def _ended(self) -> list[TrialRecord]:
        return [trial.record for trial in self._trials.values() if trial.record]

    def _in_order(self, best: _Shown | None) -> list[_Shown]:
        """The best trial, then the running ones, then the others, best first."""
        # Running trials are sorted by number: rows that move are hard to read.
        running = sorted((trial for trial in self._trials.values() if not trial.record), key=lambda each: each.number)
        ended = [self._trials[record.number] for record in best_first(self._ended(), self.metric)]
        return [*ended[:1], *running, *ended[1:]] if best else [*running, *ended]

    def rendered(self, *, height: int, width: int) -> Table:
        """The table for a terminal of this size: the best trial, the running ones, and as many others as fit."""
        keys = keys_of(trial.values for trial in self._trials.values())
        best = self._best()
        trials = self._in_order(best)
        shown = trials[: max(height - _OTHER_LINES, 1)]
        rows = [self._cells(trial, keys, best) for trial in shown]
        heads = [Text(short_names(keys)[key]) for key in keys]
        longest = [max((len(row[index]) for row in rows), default=0) for index in range(1, len(keys) + 1)]
        widths = _fitted(longest, [len(head) for head in heads], room=width - _OTHER_COLUMNS)

        table = Table(header_style="bold", box=None, padding=(0, 1))
        table.add_column("trial", justify="right", no_wrap=True)
        for head, column_width in zip(heads, widths, strict=True):
            table.add_column(head, no_wrap=True, overflow="ellipsis", width=column_width)
        table.add_column("epoch", justify="right", no_wrap=True)
        table.add_column(self.metric, justify="right", no_wrap=True)
        table.add_column("status", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("seconds", justify="right", no_wrap=True)
        for trial, row in zip(shown, rows, strict=True):
            table.add_row(*row, style=_style(trial, best))
        table.caption = self._caption(trials, hidden=len(trials) - len(shown))
        table.caption_justify = "left"
        return table

    def _cells(self, trial: _Shown, keys: list[str], best: _Shown | None) -> list[Text]:
        status = f"{trial.status}: {trial.reason}" if trial.reason else trial.status
        texts = [
            f"★ {trial.number}" if trial is best else str(trial.number),
            *(value_text(trial.values[key]) if key in trial.values else "" for key in keys),
            str(trial.epochs),
            metric_text(trial.value, self.metric),
            status,
            f"{trial.seconds:.1f}",
        ]
        # Values and reasons may contain brackets, which are not markup, and several lines, which become one.
        return [Text(" ".join(text.split())) for text in texts]

    def _caption(self, trials: list[_Shown], *, hidden: int) -> Text:
        running = sum(trial.status == "running" for trial in trials)
        of_total = f" of {self.total}" if self.total else ""
        text = f"{len(trials) - running}{of_total} trials ended, {running} running"
        return Text(f"{text}; {hidden} more are not shown" if hidden else text)

    def _line(self, trial: _Shown) -> str:
        values = ", ".join(f"{key}={value_text(value)}" for key, value in trial.values.items())
        of_total = f"/{self.total}" if self.total else ""
        result = f"{self.metric} {metric_text(trial.value, self.metric)}, " if trial.value is not None else ""
        best = ", best so far" if trial is self._best() else ""
        status = f"{trial.status} ({trial.reason})" if trial.reason else trial.status
        epochs = f"{trial.epochs} epoch{'s' if trial.epochs != 1 else ''}"
        line = f"trial {trial.number}{of_total}: {values}: {result}{status}, {epochs}, {duration(trial.seconds)}{best}"
        return " ".join(line.split())


def _size(console: Console) -> dict[str, int]:
    return {"height": console.height, "width": console.width}


def _fitted(cells: list[int], heads: list[int], *, room: int) -> list[int]:
    """Widths of columns that together fit into `room`, with a space on either side. Heads are cut first, then cells."""
    widths = [max(pair) for pair in zip(cells, heads, strict=True)]
    while widths and sum(widths) + 2 * len(widths) > room and max(widths) > 1:
        cut = [width if width > cell else 0 for width, cell in zip(widths, cells, strict=True)]
        cut = cut if any(cut) else widths
        widths[cut.index(max(cut))] -= 1
    return widths


def _style(trial: _Shown, best: _Shown | None) -> str:
    if trial is best:
        return "bold green"
    return {"running": "", "failed": "red"}.get(trial.status, "dim")
