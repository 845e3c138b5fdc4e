"""Tables of the documentation that a program computes: each stands between two comments of its page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def with_table(page: str, name: str, table: str) -> str:
    """The page with its table of that name replaced. Raises ValueError where it has no place for one."""
    place = re.compile(f"(<!-- {name}[^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
    replaced, count = place.subn(lambda found: f"{found[1]}\n{table}\n{found[2]}", page)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table `{name}`, expected 1")
    return replaced


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])
