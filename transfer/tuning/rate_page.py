"""A learning-rate range test as one HTML page."""

from __future__ import annotations

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from transfer.evaluation.svg import INK, LINE, MUTED, RIGHT, TRAINING, name_axes, new_figure, to_svg
from transfer.evaluation.templates import page_environment
from transfer.tuning.lr_find import FoundRate
from transfer.tuning.words import value_text


def render(found: FoundRate) -> str:
    """One self-contained HTML page: no script, nothing loaded from anywhere, the same text for the same test."""
    template = page_environment("tuning").get_template("lr_find.html.j2")
    chart = Markup(rate_curve_chart(found))  # noqa: S704 - drawn from numbers only
    return template.render(
        found=found,
        curve=found.curve,
        suggestion=value_text(found.suggestion),
        tenth_of_minimum=value_text(found.tenth_of_minimum),
        ends=[value_text(found.curve.rates[0]), value_text(found.curve.rates[-1])],
        chart=chart,
    ).lstrip()


def rate_curve_chart(found: FoundRate) -> str:
    """Draw the loss against the learning rate, as SVG: of single steps, smoothed, and where the suggestions lie."""
    curve = found.curve
    figure, axes = new_figure(width=1080, height=420, left=52, right=16, top=26, bottom=44)
    axes.plot(curve.rates, curve.losses, color=TRAINING, linewidth=1, alpha=0.6)
    axes.plot(curve.rates, curve.smoothed, color=RIGHT, linewidth=2.4)
    above = axes.get_xaxis_transform()
    for rate, name, color in (
        (found.tenth_of_minimum, "a tenth of the minimum", MUTED),
        (found.suggestion, "steepest", INK),
    ):
        axes.axvline(rate, color=color, linewidth=1.2, dashes=(4, 3))
        # Away from the other line, so that the two labels cannot meet.
        left = rate < found.suggestion or (rate == found.suggestion and rate <= found.tenth_of_minimum)
        axes.text(rate, 1.02, name, color=color, transform=above, fontsize=11, ha="right" if left else "left")
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: value_text(float(value))))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    # What lies beyond is the divergence itself; it would flatten all that matters.
    axes.set_ylim(0, 1.3 * float(np.quantile(curve.smoothed, 0.9)))
    axes.grid(axis="both", color=LINE, linewidth=1)
    name_axes(axes, "learning rate", "")
    return to_svg(figure, "loss-against-learning-rate")
