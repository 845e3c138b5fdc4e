"""A sweep's charts, as SVG: parallel coordinates, the metric against a learning rate, the metric against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer.evaluation.metrics import Interval
from transfer.reports.figures import (
    CARD,
    INK,
    LINE,
    MUTED,
    RIGHT,
    SERIES,
    VARIABLES,
    WRONG,
    begin_at_zero,
    log_ticks,
    name_axes,
    new_figure,
    printable,
    scale_by_powers,
    to_svg,
)
from transfer.runtime.numbers import percent_tick
from transfer.tuning.records import TrialRecord, best_first, depth_text, value_text

# A logarithmic axis needs a largest value of more than this many times the smallest.
_LOG_SPREAD = 20
# Up to this many different numbers are drawn as choices, at equal distances; more are drawn as a range.
_MAX_CHOICES = 6
_MAX_TICKS = 20
_AXIS_WIDTH = 128
# Number of parts of a learning rate's range. The line goes through the best trial of each part.
_RATE_BINS = 24


@dataclass(frozen=True)
class _Scale:
    """Positions on the axis of a key, all in 0..1: `places` of the trials' values, and ticks with their texts."""

    places: list[float]
    ticks: list[tuple[float, str]]


def depth_colors(trials: Sequence[TrialRecord]) -> dict[str, str]:
    """A placeholder color for each unfreeze depth, the cheapest depth first. From the seventh on they share one."""
    cost = {depth_text(trial.depth): trial.trained_flops for trial in trials}
    ordered = sorted(cost, key=lambda depth: (cost[depth], depth))
    return {depth: SERIES[index] if index < len(SERIES) else MUTED for index, depth in enumerate(ordered)}


def variable_of(color: str) -> str:
    """The CSS value that replaces a placeholder color."""
    return f"var({VARIABLES[color]})"


def parallel_coordinates(trials: Sequence[TrialRecord], keys: Sequence[str], metric: str, *, winner: int | None) -> str:
    """Draw each trial as a line through its values to its metric. That of a failed trial ends before, with a cross."""
    ranked = [trial for trial in best_first(trials, metric) if trial.value is not None]
    failed = [trial for trial in trials if trial.value is None]
    drawn = [*ranked, *failed]
    scales = [_scale([trial.values.get(key) for trial in drawn], is_rate=is_rate(key)) for key in keys]
    if ranked:
        scales.append(_metric_scale([trial.value for trial in ranked if trial.value is not None], metric))
    width = max(1080, _AXIS_WIDTH * len(scales))
    figure, axes = new_figure(width=width, height=360, left=70, right=70, top=52, bottom=20)
    axes.set_xlim(0, max(len(scales) - 1, 1))
    axes.set_ylim(0, 1)
    axes.axis("off")
    lines = [[scale.places[index] for scale in scales[: len(keys)]] for index in range(len(drawn))]
    style: dict[str, Any] = {"clip_on": False, "solid_capstyle": "round"}
    for places in lines[len(ranked) :]:
        axes.plot(places, color=WRONG, linewidth=1.2, alpha=0.7, dashes=(4, 3), **style)
        axes.plot(len(keys) - 1, places[-1], "x", color=WRONG, markersize=7, markeredgewidth=1.6, clip_on=False)
    # The best trials are drawn last, over the others.
    for index in reversed(range(len(ranked))):
        places = [*lines[index], scales[-1].places[index]]
        if ranked[index].number == winner:
            axes.plot(places, color=INK, linewidth=2.6, marker="o", markersize=5, **style)
        else:
            axes.plot(places, color=RIGHT, linewidth=1.4, alpha=_strength(index, len(ranked)), **style)
    for index, (scale, key) in enumerate(zip(scales, [*keys, metric], strict=False)):
        _draw_axis(axes, index, scale, key)
    return to_svg(figure, "parallel-coordinates")


def rate_chart(
    trials: Sequence[TrialRecord], key: str, metric: str, colors: dict[str, str], *, winner: Interval | None
) -> str:
    """Draw the metric against a learning rate: a dot for each trial, and a line for each depth through the best dots.

    A failed trial is a cross at the bottom. `winner`: interval of the winner's metric, drawn as a band.
    """
    figure, axes = new_figure(width=600, height=280, left=56, right=16, top=10, bottom=42)
    trials = [trial for trial in trials if _is_number(trial.values.get(key))]
    for depth, color in colors.items():
        of_depth = [trial for trial in trials if depth_text(trial.depth) == depth]
        ended = [(float(trial.values[key]), trial.value) for trial in of_depth if trial.value is not None]
        if ended:
            axes.plot(*zip(*ended, strict=True), "o", color=color, markersize=4, alpha=0.75, clip_on=False)
            axes.plot(*zip(*_best_at_each(ended, metric), strict=True), color=color, linewidth=1.8, clip_on=False)
        failed = [float(trial.values[key]) for trial in of_depth if trial.value is None]
        if failed:
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(failed, [0.02] * len(failed), "x", color=color, markersize=6, markeredgewidth=1.5, **place)
    _scale_horizontal(axes, [float(trial.values[key]) for trial in trials], is_rate=True)
    _scale_metric(axes, metric, [trial.value for trial in trials if trial.value is not None], winner)
    name_axes(axes, printable(key, length=60), "")
    return to_svg(figure, "rate-" + "".join(letter if letter.isalnum() else "-" for letter in key))


def cost_chart(trials: Sequence[TrialRecord], metric: str, colors: dict[str, str], *, winner: Interval | None) -> str:
    """Draw the metric against the seconds of each trial. The ring of a packed trial is empty.

    `winner`: interval of the winner's metric, drawn as a band.
    """
    figure, axes = new_figure(width=420, height=270, left=56, right=16, top=10, bottom=42)
    for trial in trials:
        if trial.value is not None:
            color = colors[depth_text(trial.depth)]
            inside = CARD if trial.packed_with > 1 else color
            ring: dict[str, Any] = {"markeredgecolor": color, "markerfacecolor": inside, "markeredgewidth": 1.5}
            axes.plot(trial.seconds, trial.value, "o", markersize=6, alpha=0.85, clip_on=False, **ring)
    ended = [trial for trial in trials if trial.value is not None]
    _scale_horizontal(axes, [trial.seconds for trial in ended], is_rate=False)
    _scale_metric(axes, metric, [trial.value for trial in ended if trial.value is not None], winner)
    name_axes(axes, "seconds", "")
    return to_svg(figure, "cost")


def is_rate(key: str) -> bool:
    """Whether a key is a learning rate, which always gets a logarithmic axis."""
    return key.endswith(".learning_rate")


def _scale(values: list[Any], *, is_rate: bool) -> _Scale:
    """The axis of a key: linear or logarithmic for many numbers; equal distances for few, and for other values."""
    distinct = sorted({value_text(value): value for value in values}.values(), key=_order)
    if all(map(_is_number, distinct)) and len(distinct) > _MAX_CHOICES:
        return _numeric(values, log=_is_log(values, is_rate=is_rate), text=value_text)
    texts = [value_text(value) for value in distinct]
    place = {text: (index / (len(texts) - 1) if len(texts) > 1 else 0.5) for index, text in enumerate(texts)}
    ticks = [(place[text], printable(text, length=18)) for text in texts] if len(texts) <= _MAX_TICKS else []
    return _Scale([place[value_text(value)] for value in values], ticks)


def _metric_scale(values: list[float], metric: str) -> _Scale:
    """The axis of the metric, on which better values are higher."""
    if metric == "accuracy":
        return _numeric(values, log=False, text=percent_tick)
    scale = _numeric(values, log=_is_log(values, is_rate=False), text=value_text)
    return _Scale([1 - place for place in scale.places], [(1 - place, text) for place, text in scale.ticks])


def _numeric(values: list[Any], *, log: bool, text: Any) -> _Scale:
    numbers = np.array(values, float)
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:
        return _Scale([0.5] * len(values), [(0.5, text(low))])
    candidates = log_ticks(low, high) if log else MaxNLocator(nbins=5).tick_values(low, high)
    inside = [tick for tick in candidates if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) or low <= tick <= high]
    bent = np.log if log else np.asarray

    def place(of: Any) -> Any:
        return (bent(of) - bent(low)) / (bent(high) - bent(low))

    return _Scale(list(place(numbers)), [(float(np.clip(place(tick), 0, 1)), text(float(tick))) for tick in inside])


def _draw_axis(axes: Axes, index: int, scale: _Scale, key: str) -> None:
    axes.plot([index, index], [0, 1], color=LINE, linewidth=1.5, zorder=1)
    box = {"facecolor": CARD, "alpha": 0.85, "linewidth": 0, "pad": 1.5}
    words: dict[str, Any] = {"parse_math": False, "annotation_clip": False, "zorder": 5}
    for place, text in scale.ticks:
        beside: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center_baseline"}
        axes.annotate(text, (index, place), color=MUTED, fontsize=11, bbox=box, **beside, **words)
    above, _, last = key.rpartition(".")
    axes.annotate(printable(last, length=18), (index, 1.055), color=INK, fontsize=12, ha="center", **words)
    axes.annotate(printable(above, length=20), (index, 1.115), color=MUTED, fontsize=10, ha="center", **words)


def _strength(rank: int, count: int) -> float:
    """Opacity of a trial's line, 0 to 1: higher for better trials, lower if there are many."""
    quality = 1 - rank / max(count, 2)
    return round((0.08 if count > 60 else 0.2) + 0.7 * quality**2, 3)


def _best_at_each(points: list[tuple[float, float]], metric: str) -> list[tuple[float, float]]:
    """The best point of each part of the range, by ascending rate."""
    rates = np.array([rate for rate, _ in points])
    span = np.log(rates.max() / rates.min()) if rates.min() > 0 else 0.0
    sign = 1 if metric == "accuracy" else -1
    best: dict[int, tuple[float, float]] = {}
    for rate, value in sorted(points):
        part = int(_RATE_BINS * np.log(rate / rates.min()) / span) if span else 0
        if part not in best or sign * value > sign * best[part][1]:
            best[part] = (rate, value)
    return list(best.values())


def _scale_horizontal(axes: Axes, values: list[float], *, is_rate: bool) -> None:
    axes.grid(axis="both", color=LINE, linewidth=1)
    if values and _is_log(values, is_rate=is_rate):
        scale_by_powers(axes, "x", min(values), max(values))
        return
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: value_text(float(value))))


def _scale_metric(axes: Axes, metric: str, values: list[float], winner: Interval | None) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    if winner:
        axes.axhspan(winner.low, winner.high, color=RIGHT, alpha=0.1, linewidth=0, zorder=0)
        values = [*values, winner.low, winner.high]
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_tick(value)))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.0 + 0.03 * (1.0 - axes.get_ylim()[0])))
    if values:
        begin_at_zero(axes, values, x_px=-54, y_px=-36)


def _is_log(values: Sequence[Any], *, is_rate: bool) -> bool:
    """Whether numbers are learning rates, or span more than _LOG_SPREAD and are mostly small."""
    low, high = min(values), max(values)
    if is_rate:
        return bool(low > 0)
    return bool(low > 0 and high / low > _LOG_SPREAD and np.median(values) < (low + high) / 4)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[bool, float, str]:
    """Key of a sorting order: numbers first, by size; then all other values, by their text."""
    return (not _is_number(value), float(value) if _is_number(value) else 0.0, value_text(value))
