"""A screen as one HTML page."""

from __future__ import annotations

from transfer.reports.templates import page_environment
from transfer.runtime.numbers import percent, size
from transfer.screening.result import ScreenResult


def render(result: ScreenResult) -> str:
    """One self-contained HTML page, without scripts, that loads nothing. The same result has the same text."""
    return (
        page_environment("screening")
        .get_template("screen.html.j2")
        .render(result=result, best=result.best, headline=headline(result), size=size)
        .lstrip()
    )


def headline(result: ScreenResult) -> str:
    """The result in one sentence."""
    best = result.best
    if best is None:
        return "None of the networks can be had."
    interval = f"{percent(best.interval.low)} to {percent(best.interval.high)}"
    return f"{best.title} tells the classes apart best: {percent(best.accuracy)} ({interval}) by a linear probe."
