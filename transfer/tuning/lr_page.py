"""A learning-rate range test as one HTML page."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from transfer.config import unfreeze_title
from transfer.reports.figures import (
    INK,
    LINE,
    MUTED,
    RIGHT,
    TRAINING,
    mark_as_zoomed,
    name_axes,
    new_figure,
    scale_by_powers,
    to_svg,
)
from transfer.reports.templates import page_environment
from transfer.tuning.lr_curve import FoundRate, RateCurve
from transfer.tuning.records import value_text


def render(found: FoundRate) -> str:
    """One self-contained HTML page, without scripts, that loads nothing. The same test has the same text."""
    template = page_environment("tuning").get_template("lr_find.html.j2")
    chart = Markup(rate_curve_chart(found))  # noqa: S704 - drawn from numbers only
    fall = _fall(found.curve)
    return template.render(
        found=found,
        curve=found.curve,
        title=unfreeze_title(found.unfreeze, rank=found.rank),
        suggestion=value_text(found.suggestion),
        tenth_of_minimum=value_text(found.tenth_of_minimum),
        fall=[f"{loss:.3f}" for loss in fall],
        falls=fall[1] < 0.95 * fall[0],
        ends=[value_text(found.curve.rates[0]), value_text(found.curve.rates[-1])],
        chart=chart,
    ).lstrip()


def _fall(curve: RateCurve) -> tuple[float, float]:
    """The highest smoothed loss before the lowest one, and the lowest one."""
    lowest = int(np.argmin(curve.smoothed))
    return float(curve.smoothed[: lowest + 1].max()), float(curve.smoothed[lowest])


def rate_curve_chart(found: FoundRate) -> str:
    """Draw the loss against the learning rate, as SVG: single steps, the smoothed curve, and both suggestions."""
    curve = found.curve
    figure, axes = new_figure(width=600, height=320, left=52, right=16, top=26, bottom=44)
    axes.plot(curve.rates, curve.losses, color=TRAINING, linewidth=1, alpha=0.6)
    axes.plot(curve.rates, curve.smoothed, color=RIGHT, linewidth=2.4)
    above = axes.get_xaxis_transform()
    for rate, name, color in (
        (found.tenth_of_minimum, "a tenth of the minimum", MUTED),
        (found.suggestion, "steepest", INK),
    ):
        axes.axvline(rate, color=color, linewidth=1.2, dashes=(4, 3))
        # Each label is on the side away from the other line, so that they cannot overlap.
        left = rate < found.suggestion or (rate == found.suggestion and rate <= found.tenth_of_minimum)
        axes.text(rate, 1.02, name, color=color, transform=above, fontsize=11, ha="right" if left else "left")
    scale_by_powers(axes, "x", curve.rates[0], curve.rates[-1])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    _show_the_fall(axes, curve)
    axes.grid(axis="both", color=LINE, linewidth=1)
    name_axes(axes, "learning rate", "")
    return to_svg(figure, "loss-against-learning-rate")


def _show_the_fall(axes: Axes, curve: RateCurve) -> None:
    """Fit the axis to the fall of the loss. The divergence, if shown as a whole, would make the fall a flat line."""
    high, low = _fall(curve)
    # Losses of single steps scatter around the smoothed curve.
    losses = np.array(curve.losses)[: int(np.argmin(curve.smoothed)) + 1]
    low, high = min(low, float(np.quantile(losses, 0.02))), max(high, float(np.quantile(losses, 0.98)))
    room = (high - low) or abs(high) or 1.0
    bottom = max(low - 0.15 * room, 0.0)
    axes.set_ylim(bottom, high + 0.4 * room)
    if bottom > 0:
        mark_as_zoomed(axes, x_px=-50, y_px=-38)
