"""The template engine of the HTML pages: everything is escaped, nothing may be missing, numbers are written one way."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(room: str = "evaluation") -> Environment:
    """An environment that finds a room's templates, and the report's styles which all pages include."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("transfer", each) for each in dict.fromkeys((room, "evaluation"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=_number)
    return environment


def percent(share: float, digits: int = 1) -> str:
    """`96.4 %`. Only what is exactly all is written as 100 %, and only what is exactly nothing as 0 %."""
    step = 10.0**-digits
    value = 100.0 * share
    if share < 1 and value > 100 - step / 2:
        return f">{100 - step:.{digits}f}\u202f%"
    if share > 0 and value < step / 2:
        return f"<{step:.{digits}f}\u202f%"
    return f"{value:.{digits}f}\u202f%"


def _number(value: int) -> str:
    return f"{value:,}"
