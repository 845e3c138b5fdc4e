"""Printing answers of the commands for people: names and values, and tables for lists of rows."""

from __future__ import annotations

from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(answer: dict[str, Any], stream: TextIO) -> None:
    """Print a command's answer: one line for a value, a table for a list of rows."""
    # Outside of a terminal nothing is wrapped or cut, so that paths can be copied.
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 10_000)
    width = max(map(len, answer), default=0)
    tables = []
    for name, value in answer.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append(_table(value))
        elif value not in (None, {}):
            text = "none" if value == [] else _text(value)
            console.print(f"{name.replace('_', ' '):<{width}}  {text}", soft_wrap=True, markup=False)
    for table in tables:
        console.print(table)


def removal(what: str, *, removed: bool) -> dict[str, str]:
    """One line on what was removed, or would be with the option `--remove`.

    `what`: objects with numbers and sizes; empty if there is nothing to remove.
    """
    if not what:
        return {"removed": "nothing: there is nothing to remove"}
    return {"removed": what} if removed else {"would remove": f"{what}. Nothing is removed yet: add --remove for that."}


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(header_style="bold", box=None, padding=(0, 2))
    for column in rows[0]:
        number = isinstance(rows[0][column], int | float)
        table.add_column(column.replace("_", " "), justify="right" if number else "left", overflow="fold")
    for row in rows:
        # No markup, because paths and reasons may contain brackets.
        table.add_row(*(Text(_text(value)) for value in row.values()))
    return table


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        shown = ", ".join(str(item) for item in value[:12])
        return shown if len(value) <= 12 else f"{shown}, … ({len(value)})"
    return str(value)
