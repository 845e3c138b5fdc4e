"""A night as one HTML page, in the look of a run's report, and as a few lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transfer.evaluation.metrics import Interval
from transfer.evaluation.templates import page_environment, percent
from transfer.evaluation.thumbnails import Thumbnail
from transfer.nightly import words
from transfer.nightly.summary import ClassChange, ClassRecall, Comparison, DataChange, Flip, NightSummary, Side

# Longer tables continue in a part that is folded away.
_OPEN_ROWS = 30


@dataclass(frozen=True)
class FigureRow:
    """One figure of both models, and how it changed from champion to challenger; `better`: None where that is open."""

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
    """Where the difference of two accuracies, its interval, and none at all stand on a scale, in percent."""

    span: Span
    zero: float


@dataclass(frozen=True)
class ClassRow:
    """One class on the images compared. `change` of the recall; `share`: of the largest change of any class."""

    recall: ClassRecall
    change: float | None
    share: float


def render_night(summary: NightSummary, thumbnails: Mapping[str, Thumbnail]) -> str:
    """One self-contained HTML page: no script, no link, nothing loaded from anywhere, the same text for the same night.

    `thumbnails`: by the SHA-256 of the images that flipped; one that is missing gets a placeholder.
    """
    comparison = summary.comparison
    return (
        page_environment("nightly")
        .get_template("night.html.j2")
        .render(
            summary=summary,
            words=words,
            headline=words.headline(summary),
            why=words.why(summary),
            began=_clock(summary.started),
            ended=_clock(summary.ended),
            seconds=_seconds(summary),
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


def first_lines(summary: NightSummary) -> str:
    """What a terminal shows of a night: five to eight lines."""
    rows = [
        ("why", words.why(summary)),
        ("champion", "none" if summary.champion is None else f"version {summary.champion}"),
        ("data", _data_line(summary)),
        *([("checks", _checks_line(summary))] if summary.findings else []),
        *([("accuracy", _accuracy_line(summary.comparison))] if summary.comparison else []),
        *([("gate", _gate_line(summary))] if summary.decision else []),
        ("took", _took_line(summary)),
    ]
    lines = [f"{summary.name}, night {summary.night}: {summary.outcome}. {words.headline(summary)}"]
    # An error's text may have lines of its own.
    lines += [f"{name:<8}  {' '.join(text.split())}" for name, text in rows]
    return "\n".join(lines)


def _clock(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _seconds(summary: NightSummary) -> float:
    return sum(step.seconds for step in summary.steps)


def _figures(comparison: Comparison) -> list[FigureRow]:
    ours, theirs = comparison.challenger, comparison.champion
    if theirs is None:
        return [FigureRow(name, text) for name, text in _of_side(ours).items()]
    accuracy = comparison.difference or 0.0
    f1 = ours.metrics.macro.f1 - theirs.metrics.macro.f1
    loss = ours.metrics.loss - theirs.metrics.loss
    changes = {
        "Accuracy": (words.points(accuracy), accuracy),
        "Macro F1": (words.points(f1), f1),
        "Loss": (f"{loss:+.4f}", -loss),
        # Neither good nor bad by themselves: time varies from one measurement to the next.
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
        "Files": words.size(side.size_bytes),
        "Dataset": side.dataset,
        "Run": side.run,
    }


def _intervals(challenger: Side, champion: Side) -> list[tuple[str, Interval, Span]]:
    """Both accuracies with their intervals on one scale, which is as wide as they need."""
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
    """By rising change; then classes without one, those with images first. Sorting keeps equal ones in their order."""
    changes = [(words.recall_change(row), row) for row in comparison.classes]
    largest = max((abs(change) for change, _ in changes if change is not None), default=0.0)
    rows = [
        ClassRow(row, change, abs(change) / largest if change is not None and largest else 0.0)
        for change, row in changes
    ]
    return sorted(rows, key=lambda row: (row.change is None, row.change or 0.0, row.recall.images == 0))


def _unknown(comparison: Comparison) -> list[str]:
    """Classes that the champion cannot answer."""
    if comparison.champion is None:
        return []
    return [row.name for row in comparison.classes if row.images and row.champion is None]


def _galleries(
    comparison: Comparison, thumbnails: Mapping[str, Thumbnail]
) -> list[tuple[str, int, list[tuple[Flip, Thumbnail | None]]]]:
    """Images lost and images gained: a title, how many there are, and those that are shown."""
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


def _data_line(summary: NightSummary) -> str:
    if summary.change is None:
        return summary.dataset or "not known"
    change = summary.change
    return f"{change.now}: {words.many(change.images, 'image')}, {change.new:,} new, {change.gone:,} gone"


def _checks_line(summary: NightSummary) -> str:
    failed = [finding for finding in summary.findings if not finding.passed]
    passed = f"{len(summary.findings) - len(failed)} of {len(summary.findings)} passed"
    return passed + "".join(f"; {finding.action}: {finding.check}" for finding in failed)


def _accuracy_line(comparison: Comparison) -> str:
    ours = f"{percent(comparison.challenger.metrics.accuracy)} on {words.many(comparison.images, 'held-out image')}"
    if comparison.champion is None or comparison.interval is None or comparison.p_value is None:
        return ours
    return (
        f"{ours}, the champion's is {percent(comparison.champion.metrics.accuracy)}: "
        f"{words.points(comparison.difference or 0.0)} ({words.points(comparison.interval.low)} to "
        f"{words.points(comparison.interval.high)}), {words.p_text(comparison.p_value)}"
    )


def _gate_line(summary: NightSummary) -> str:
    rules = summary.decision.rules if summary.decision else []
    failed = [rule.name for rule in rules if not rule.passed]
    return f"{len(rules) - len(failed)} of {len(rules)} rules passed" + (
        f"; failed: {', '.join(failed)}" if failed else ""
    )


def _took_line(summary: NightSummary) -> str:
    longest = sorted(summary.steps, key=lambda step: -step.seconds)[:3]
    steps = ", ".join(f"{step.name} {step.seconds:,.1f} s" for step in longest)
    return f"{_seconds(summary):,.1f} s" + (f", most of it: {steps}" if steps else "")
