"""The template engine of the HTML pages: it escapes every value, refuses missing ones, and formats numbers."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from transfer.runtime.numbers import duration, p_text, percent


def page_environment(room: str = "evaluation") -> Environment:
    """A Jinja environment with the templates of a room and those that all pages share."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("transfer", each) for each in dict.fromkeys((room, "reports"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, duration=duration, number=_number, p_text=p_text, clock=clock)
    return environment


def clock(moment: str) -> str:
    """A time in ISO 8601, cut to the minute."""
    return moment[:16].replace("T", " ")


def _number(value: int) -> str:
    return f"{value:,}"
