"""The report as one HTML page: what the template shows, in the order in which it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import yaml
from markupsafe import Markup

from transfer.evaluation import charts
from transfer.evaluation.metrics import ClassMetrics, Metrics
from transfer.evaluation.report import Report
from transfer.evaluation.templates import page_environment
from transfer.evaluation.thumbnails import make_thumbnail

# Longer tables continue in a part that is folded away.
_OPEN_ROWS = 30
_MAX_PAIRS = 12
# A matrix with more named classes needs the page's full width to stay readable.
_MAX_NARROW_CLASSES = 14
_SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class ConfusedPair:
    """How often images of one class were taken for another. `share`: of the images of the true class."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class ClassCounts:
    """Images of one class in each split, in the order of the splits."""

    name: str
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Images in all splits."""
        return sum(self.counts)


def render(report: Report, thumbnails: Mapping[str, bytes]) -> str:
    """Fill the template. What comes from the user is escaped by Jinja or, inside charts, by matplotlib."""
    metrics = report.metrics
    names = [row.name for row in metrics.per_class]
    splits = _splits(report.counts)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            metrics=metrics,
            open_rows=_OPEN_ROWS,
            numbered=len(names) > charts.MAX_NAMED_CLASSES,
            crowded=_MAX_NARROW_CLASSES < len(names) <= charts.MAX_NAMED_CLASSES,
            curves=_curves(report),
            has_validation=any(row.validation_loss is not None for row in report.history),
            seconds=sum(row.seconds for row in report.history),
            matrix=Markup(charts.confusion_chart(metrics.confusion, names)),  # noqa: S704 - matplotlib escapes class names
            pairs=_confused_pairs(metrics),
            classes=_worst_first(metrics),
            absent=[row.name for row in metrics.per_class if row.support == 0],
            mistakes=[(mistake, _thumbnail(thumbnails, mistake.key)) for mistake in report.mistakes],
            wrong=metrics.images - sum(row[index] for index, row in enumerate(metrics.confusion)),
            splits=splits,
            totals=[sum(report.counts[split].values()) for split in splits],
            counts=_fewest_first(report.counts, splits),
            config=yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True, width=100),
        )
        .lstrip()
    )


def _curves(report: Report) -> list[tuple[str, Markup]]:
    if not report.history:
        return []
    drawn = (
        ("Loss", charts.loss_chart(report.history)),
        ("Accuracy", charts.accuracy_chart(report.history)),
        ("Learning rate", charts.learning_rate_chart(report.history)),
    )
    return [(title, Markup(svg)) for title, svg in drawn]  # noqa: S704 - drawn from numbers only


def _confused_pairs(metrics: Metrics) -> list[ConfusedPair]:
    counts = np.array(metrics.confusion)
    np.fill_diagonal(counts, 0)
    pairs = [
        ConfusedPair(
            truth=metrics.per_class[truth].name,
            predicted=metrics.per_class[predicted].name,
            count=int(counts[truth, predicted]),
            share=counts[truth, predicted] / metrics.per_class[truth].support,
        )
        for truth, predicted in np.argwhere(counts)
    ]
    # Sorting is stable: equal pairs stay in the order of class indices.
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:_MAX_PAIRS]


def _worst_first(metrics: Metrics) -> list[tuple[int, ClassMetrics]]:
    """Classes with their indices, by rising F1; those without images in the split last."""
    rows = list(enumerate(metrics.per_class))
    return sorted(rows, key=lambda row: (row[1].f1 is None, row[1].f1 or 0.0))


def _splits(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    known = [split for split in _SPLIT_ORDER if split in counts]
    return known + sorted(set(counts) - set(known))


def _fewest_first(counts: Mapping[str, Mapping[str, int]], splits: list[str]) -> list[ClassCounts]:
    names = dict.fromkeys(name for split in splits for name in counts[split])
    rows = [ClassCounts(name, tuple(counts[split].get(name, 0) for split in splits)) for name in names]
    return sorted(rows, key=lambda row: row.total)


def _thumbnail(thumbnails: Mapping[str, bytes], key: str) -> object:
    return make_thumbnail(thumbnails[key]) if key in thumbnails else None
