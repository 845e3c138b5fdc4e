"""A night as one HTML page, in the look of a run's report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer.evaluation.metrics import Interval
from transfer.nights import message
from transfer.nights.summary import ClassChange, DataChange, NightSummary, Outcome
from transfer.registry.comparison import ClassRecall, Comparison, Flip, Side
from transfer.reports.figures import (
    CARD,
    LINE,
    MUTED,
    RIGHT,
    SERIES,
    WRONG,
    begin_at_zero,
    name_axes,
    new_figure,
    to_svg,
)
from transfer.reports.templates import page_environment
from transfer.reports.thumbnails import Thumbnail
from transfer.runtime.numbers import percent, percent_tick, points, size

_PROMOTED = SERIES[2]
_WITHOUT_FIGURES: dict[Outcome, tuple[str, str]] = {
    "nothing new": ("_", MUTED),
    "refused": ("D", SERIES[4]),
    "failed": ("x", WRONG),
}
"""Marker and color of a night in which nothing was compared."""


def trend_chart(nights: Sequence[NightSummary]) -> str | None:
    """Draw nights, the oldest first, as SVG. Returns None if fewer than two have figures."""
    compared = [night for night in nights if night.comparison]
    if len(compared) < 2:
        return None
    figure, axes = new_figure(width=600, height=250, left=56, right=16, top=12, bottom=44)
    served = [(night.night, _served(night)) for night in compared]
    axes.plot(*zip(*served, strict=True), color=RIGHT, linewidth=1.8, clip_on=False)
    values = [accuracy for _, accuracy in served]
    for night in compared:
        metrics = night.comparison.challenger.metrics if night.comparison else None
        if metrics is None:
            continue
        interval = metrics.accuracy_interval
        axes.plot([night.night] * 2, [interval.low, interval.high], color=MUTED, linewidth=1.2, clip_on=False)
        color = _PROMOTED if night.outcome == "promoted" else MUTED
        ring: dict[str, Any] = {"markeredgecolor": color, "markeredgewidth": 1.6, "clip_on": False}
        inside = color if night.outcome == "promoted" else CARD
        axes.plot(night.night, metrics.accuracy, "o", markersize=7, markerfacecolor=inside, **ring)
        values += [interval.low, interval.high]
    for night in nights:
        if night.outcome in _WITHOUT_FIGURES:
            marker, color = _WITHOUT_FIGURES[night.outcome]
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(night.night, 0.03, marker, color=color, markersize=6, markeredgewidth=1.6, **place)
    axes.set_xlim(nights[0].night - 0.5, nights[-1].night + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent_tick(value)))
    low, high = min(values), max(values)
    # Room at the bottom for the nights without figures.
    axes.set_ylim(low - 0.2 * (high - low), min(high + 0.08 * (high - low), 1.02))
    axes.grid(axis="y", color=LINE, linewidth=1)
    begin_at_zero(axes, values, x_px=-54, y_px=-38)
    name_axes(axes, "night", "")
    return to_svg(figure, "trend")


def counted(nights: Sequence[NightSummary]) -> str:
    """Outcomes of nights in words, such as `Nights 1 to 5: 3 promoted, 2 kept.`; not empty."""
    counts = Counter(night.outcome for night in nights)
    first, last = nights[0].night, nights[-1].night
    return f"Nights {first} to {last}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}."


def _served(night: NightSummary) -> float:
    """Accuracy of the version that served after a night, on the images of that night."""
    if night.comparison is None:
        raise ValueError(f"Night {night.night} has no figures.")
    champion = night.comparison.champion
    side = night.comparison.challenger if night.outcome == "promoted" or champion is None else champion
    return side.metrics.accuracy


# Rows that are visible; the rest of a longer table is collapsed.
_OPEN_ROWS = 30


@dataclass(frozen=True)
class FigureRow:
    """One figure of both models, and its change from champion to challenger. `better`: None if that is undecided."""

    name: str
    challenger: str
    champion: str | None = None
    change: str = ""
    better: bool | None = None


@dataclass(frozen=True)
class Span:
    """An interval and its middle on a scale, all in percent of the scale's width."""

    low: float
    width: float
    middle: float


@dataclass(frozen=True)
class DifferenceScale:
    """Positions on a scale in percent: a difference of two accuracies with its interval, and zero."""

    span: Span
    zero: float


@dataclass(frozen=True)
class ClassRow:
    """One class on the compared images. `change`: of the recall; `share`: of the largest change of any class."""

    recall: ClassRecall
    change: float | None
    share: float


@dataclass(frozen=True)
class KnownSide:
    """Figures of the version that serves, from an earlier night."""

    night: int
    side: Side


def render_night(
    summary: NightSummary, thumbnails: Mapping[str, Thumbnail], *, earlier: Sequence[NightSummary] = ()
) -> str:
    """Render a night as one self-contained HTML page without scripts and links; deterministic.

    `thumbnails`: of the images that changed, by SHA-256; a missing one gets a placeholder. `earlier`: earlier nights
    for the trend, oldest first.
    """
    comparison = summary.comparison
    nights = [*earlier, summary]
    chart = trend_chart(nights)
    return (
        page_environment("nights")
        .get_template("night.html.j2")
        .render(
            summary=summary,
            words=message,
            headline=message.headline(summary),
            why=message.why(summary),
            verdict=message.verdict(comparison) if comparison else None,
            known=None if comparison else _known_side(summary.champion, earlier),
            trend=Markup(chart) if chart else None,  # noqa: S704 - drawn from numbers only
            counted=counted(nights),
            seconds=message.seconds(summary),
            comparison=comparison,
            figures=_figures(comparison) if comparison else [],
            intervals=_intervals(comparison.challenger, comparison.champion)
            if comparison and comparison.champion
            else [],
            scale=_difference_scale(comparison) if comparison else None,
            classes=_class_rows(comparison) if comparison else [],
            unknown=_unknown(comparison) if comparison else [],
            galleries=_galleries(comparison, thumbnails) if comparison else [],
            change=summary.change,
            changes=_most_changed_first(summary.change) if summary.change else [],
            most_images=max((row.before + row.new for row in summary.change.classes), default=1)
            if summary.change
            else 1,
            longest=max((step.seconds for step in summary.steps), default=0.0),
            open_rows=_OPEN_ROWS,
        )
        .lstrip()
    )


def _known_side(version: int | None, earlier: Sequence[NightSummary]) -> KnownSide | None:
    """Figures of the version that serves, from the latest night that compared it."""
    for night in reversed(earlier):
        if night.comparison:
            for side in (night.comparison.challenger, night.comparison.champion):
                if side is not None and side.version == version:
                    return KnownSide(night.night, side)
    return None


def _figures(comparison: Comparison) -> list[FigureRow]:
    ours, theirs = comparison.challenger, comparison.champion
    if theirs is None:
        return [FigureRow(name, text) for name, text in _of_side(ours).items()]
    accuracy = comparison.difference or 0.0
    f1 = ours.metrics.macro.f1 - theirs.metrics.macro.f1
    loss = ours.metrics.loss - theirs.metrics.loss
    changes = {
        "Accuracy": (points(accuracy), accuracy),
        "Macro F1": (points(f1), f1),
        "Loss": (f"{loss:+.4f}", -loss),
        # Counted neither as better nor as worse, because times vary between measurements.
        "One image": (f"× {ours.latency_ms / theirs.latency_ms:.2f}", 0.0),
        "Files": (f"× {ours.size_bytes / theirs.size_bytes:.2f}", 0.0),
    }
    others = _of_side(theirs)
    rows = []
    for name, text in _of_side(ours).items():
        change, gain = changes.get(name, ("", 0.0))
        rows.append(FigureRow(name, text, others[name], change, gain > 0 if gain else None))
    return rows


def _of_side(side: Side) -> dict[str, str]:
    return {
        "Accuracy": percent(side.metrics.accuracy),
        "Macro F1": percent(side.metrics.macro.f1),
        "Loss": f"{side.metrics.loss:.4f}",
        "One image": f"{side.latency_ms:,.1f} ms",
        "Files": size(side.size_bytes),
        "Dataset": side.dataset,
        "Run": side.run,
    }


def _intervals(challenger: Side, champion: Side) -> list[tuple[str, Interval, Span]]:
    """Both accuracies with their intervals, on one scale that spans both."""
    sides = {"challenger": challenger.metrics, "champion": champion.metrics}
    low = min(metrics.accuracy_interval.low for metrics in sides.values())
    high = max(metrics.accuracy_interval.high for metrics in sides.values())
    return [
        (role, metrics.accuracy_interval, _span(metrics.accuracy_interval, metrics.accuracy, low=low, high=high))
        for role, metrics in sides.items()
    ]


def _difference_scale(comparison: Comparison) -> DifferenceScale | None:
    if comparison.interval is None or comparison.difference is None:
        return None
    interval = comparison.interval
    low, high = min(interval.low, 0.0), max(interval.high, 0.0)
    margin = 0.1 * (high - low) or 1.0
    low, high = low - margin, high + margin
    return DifferenceScale(
        span=_span(interval, comparison.difference, low=low, high=high), zero=_place(0.0, low=low, high=high)
    )


def _span(interval: Interval, middle: float, *, low: float, high: float) -> Span:
    start, stop = _place(interval.low, low=low, high=high), _place(interval.high, low=low, high=high)
    return Span(start, round(stop - start, 2), _place(middle, low=low, high=high))


def _place(value: float, *, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2) if high > low else 50.0


def _class_rows(comparison: Comparison) -> list[ClassRow]:
    """The classes by rising change, then those without a change, classes with images first. The sort is stable."""
    changes = [(row.change, row) for row in comparison.classes]
    largest = max((abs(change) for change, _ in changes if change is not None), default=0.0)
    rows = [
        ClassRow(row, change, abs(change) / largest if change is not None and largest else 0.0)
        for change, row in changes
    ]
    return sorted(rows, key=lambda row: (row.change is None, row.change or 0.0, row.recall.images == 0))


def _unknown(comparison: Comparison) -> list[str]:
    """Classes that the champion does not know."""
    if comparison.champion is None:
        return []
    return [row.name for row in comparison.classes if row.images and row.champion is None]


def _galleries(
    comparison: Comparison, thumbnails: Mapping[str, Thumbnail]
) -> list[tuple[str, int, list[tuple[Flip, Thumbnail | None]]]]:
    """Lost images and gained images: a title, their number, and the ones that are shown."""
    shown = [(flip, thumbnails.get(flip.sha256)) for flip in comparison.flips]
    lost = [(flip, picture) for flip, picture in shown if flip.challenger != flip.truth]
    gained = [(flip, picture) for flip, picture in shown if flip.challenger == flip.truth]
    galleries = [
        ("Right before, wrong now", comparison.lost, lost),
        ("Wrong before, right now", comparison.gained, gained),
    ]
    return [gallery for gallery in galleries if gallery[2]]


def _most_changed_first(change: DataChange) -> list[ClassChange]:
    return sorted(change.classes, key=lambda row: (-(row.new + row.gone), -row.before))
