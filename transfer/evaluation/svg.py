"""Matplotlib figures as inline SVG that takes its colors and its font from the page.

Figures are drawn in stand-in colors, which become CSS variables in the SVG, so one chart serves light and dark. Text
stays text and is set in the page's font. The variables are defined in `report.css.j2`.
"""

from __future__ import annotations

import io
import re
import warnings

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE, TRAINING, RIGHT, WRONG, ON_COLOR, CARD = (f"#01020{digit}" for digit in range(1, 9))
SERIES = tuple(f"#01021{digit}" for digit in range(1, 7))
"""Colors that tell a few lines apart."""
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    TRAINING: "--training",
    RIGHT: "--accent",
    WRONG: "--wrong",
    ON_COLOR: "--on-color",
    CARD: "--card",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES, start=1)},
}
"""The CSS variable that each stand-in becomes."""

_STYLE = {"svg.fonttype": "none", "font.family": "DejaVu Sans"}


def new_figure(
    *, width: float, height: float, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """Make a figure of this size with these margins around the axes, all in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.tick_params(length=0, pad=6, labelsize=11, labelcolor=MUTED)
    for side in axes.spines.values():
        side.set(color=LINE, visible=False)
    axes.set_axisbelow(True)
    return figure, axes


def name_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    """Write what the axes measure."""
    axes.set_xlabel(horizontal, color=MUTED, fontsize=11, parse_math=False)
    axes.set_ylabel(vertical, color=MUTED, fontsize=11, parse_math=False)


def to_svg(figure: Figure, name: str) -> str:
    """Write a figure as an SVG element to be placed in HTML: no prologue, no date, no fixed size, ids of its own.

    `name` becomes part of the ids: give each figure of a page another one.
    """
    target = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts; what matplotlib's font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(
            target, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")), transparent=True
        )
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    width, height = (round(float(inches) * 72) for inches in figure.get_size_inches())
    root = (
        f'<svg class="chart" viewBox="0 0 {width} {height}" style="--width: {width}px" role="img" aria-label="{name}">'
    )
    return root + text[text.index(">") + 1 :].strip()


def printable(name: str, *, length: int) -> str:
    """A user's text as SVG can hold it, cut to `length` letters."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in name)
    return shown if len(shown) <= length else shown[: length - 1] + "…"
