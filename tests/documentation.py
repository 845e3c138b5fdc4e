"""The documentation as tests read it: its pages, and the blocks, headings and links in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NOT_RUN = "# Not run by the tests"
"""Begins a block of Python that needs what tests do not have."""
ON_RAY = "transfer.sweep("
"""Stands in a block of Python that tests/system/on_ray runs."""


@dataclass(frozen=True)
class Block:
    """A fenced block. `language` is what stands behind its fence; commands have none."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where it is."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in their order."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            yield Block(page, token.map[0] + 1, token.info, token.content)


def inline_code(page: Path) -> set[str]:
    """What stands between backticks in the text of a page, tables included."""
    return {token.content for token in _inline(page) if token.type == "code_inline"}


def links(page: Path) -> set[str]:
    """Where the links and images of a page lead to."""
    return {str(token.attrs.get("href") or token.attrs.get("src")) for token in _inline(page) if token.attrs}


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    anchors = set()
    for opened, inside in pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(child.content for child in inside.children or ())
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            anchors.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
            found[anchor] += 1
    return anchors


def _inline(page: Path) -> Iterator:
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        yield from token.children or ()
