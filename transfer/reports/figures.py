"""Matplotlib figures as inline SVG with the colors and the font of the page; axes that do not begin at 0 are marked.

Figures are drawn in placeholder colors, which become CSS variables in the SVG, so one chart serves light and dark
pages. Text stays text in the font of the page. `report.css.j2` defines the variables.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# An axis begins at 0 if the range of the values is at least this share of it; else the curve would be a flat line.
_LEAST_SHARE = 0.4
_MOST_LOG_TICKS = 7


def begin_at_zero(axes: Axes, values: Sequence[float], *, x_px: float, y_px: float) -> None:
    """Let the vertical axis begin at 0, or mark it as zoomed if the values would be a flat line on it.

    Call it after drawing. `x_px`, `y_px`: position of the mark from the lower left corner of the axes, in CSS pixels.
    """
    low, high = min(values), max(values)
    if high - low >= _LEAST_SHARE * high:
        axes.set_ylim(bottom=min(0.0, low))
    else:
        mark_as_zoomed(axes, x_px=x_px, y_px=y_px)


def mark_as_zoomed(axes: Axes, *, x_px: float, y_px: float) -> None:
    """Write that the vertical axis does not begin at 0."""
    style: dict[str, Any] = {"color": MUTED, "fontsize": 10, "fontstyle": "italic", "annotation_clip": False}
    where: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (x_px, y_px), "textcoords": "offset points"}
    axes.annotate("zoomed, not from 0", (0, 0), **where, **style)


def scale_by_powers(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """Make an axis logarithmic with round tick values, for values from `low` to `high`, both above 0."""
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e-0", "e-")))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`: 1, 2 and 5 times each power of ten if there is room, else fewer."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [power for power in powers if _is_within(10.0**power, low, high)]
    for digits in ((1, 2, 5), (1, 3)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if _is_within(tick, low, high)]
        if 2 <= len(ticks) <= _MOST_LOG_TICKS:
            return ticks
    if len(whole) >= 2:
        return [10.0**power for power in whole[:: math.ceil(len(whole) / _MOST_LOG_TICKS)]]
    return sorted({low, high})


def _is_within(value: float, low: float, high: float) -> bool:
    return low * (1 - 1e-9) <= value <= high * (1 + 1e-9)


INK, MUTED, LINE, TRAINING, RIGHT, WRONG, ON_COLOR, CARD = (f"#01020{digit}" for digit in range(1, 9))
SERIES = tuple(f"#01021{digit}" for digit in range(1, 7))
"""Colors of different lines."""
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
"""The CSS variable that replaces each placeholder color."""

_STYLE = {"svg.fonttype": "none", "font.family": "DejaVu Sans"}


def new_figure(
    *, width: float, height: float, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    """Make a figure with this size and these margins around the axes, in CSS pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box, facecolor="none")
    axes.tick_params(length=0, pad=6, labelsize=11, labelcolor=MUTED)
    for side in axes.spines.values():
        side.set(color=LINE, visible=False)
    axes.set_axisbelow(True)
    return figure, axes


def name_axes(axes: Axes, horizontal: str, vertical: str) -> None:
    """Label the axes."""
    axes.set_xlabel(horizontal, color=MUTED, fontsize=11, parse_math=False)
    axes.set_ylabel(vertical, color=MUTED, fontsize=11, parse_math=False)


def to_svg(figure: Figure, name: str) -> str:
    """Write a figure as an SVG element for HTML: no prologue, no date, no fixed size, unique ids.

    `name`: part of the ids, unique among the figures of a page.
    """
    target = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so glyphs that matplotlib's font lacks do not matter.
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
    """A text of the user without characters that SVG cannot contain, cut to `length` characters."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in name)
    return shown if len(shown) <= length else shown[: length - 1] + "…"
