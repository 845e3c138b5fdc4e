"""The report as one HTML page: the values of the template, in the order of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from transfer.config import Depth, unfreeze_title
from transfer.config.paths import brings_weights
from transfer.evaluation import charts
from transfer.evaluation.metrics import ClassMetrics, Interval, Metrics, beats_commonest_class, wilson_interval
from transfer.evaluation.mistakes import Mistake
from transfer.evaluation.report import Report, beside, final_epoch_text, headline, spent_of
from transfer.reports.templates import page_environment
from transfer.reports.thumbnails import Thumbnail, make_thumbnail
from transfer.training.history import SMALLEST_PROBABILITY

# Longer tables continue in a collapsed part.
_OPEN_ROWS = 30
_MAX_PAIRS = 12
# With more named classes the matrix needs the full width of the page.
_MAX_NARROW_CLASSES = 14
_SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class ConfusedPair:
    """Number of images of one class that were predicted as another. `share`: share of the true class's images."""

    truth: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class MistakeGroup:
    """Mistakes that are shown together: of one pair, or (`pair` None) of all pairs with one picture each."""

    pair: ConfusedPair | None
    mistakes: tuple[tuple[Mistake, Thumbnail | None], ...]


@dataclass(frozen=True)
class PhaseFacts:
    """A trained phase: what it trained, for how many epochs, and how, as far as the configuration has it."""

    title: str
    epochs: int
    learning_rate: float | None
    optimizer: str | None


@dataclass(frozen=True)
class ClassCounts:
    """Number of images of one class in each split, in the order of the splits."""

    name: str
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of images in all splits."""
        return sum(self.counts)


def render_html(
    report: Report, *, thumbnails: Mapping[str, bytes], storage: str | None = None, depth: Depth = "reject"
) -> str:
    """Render one self-contained HTML page: no script, no external resource, the same text for the same report.

    Args:
        report: The report.
        thumbnails: Encoded images (JPEG, PNG, …) by the SHA-256 of the report's mistakes. A mistake without a readable
            image gets a placeholder.
        storage: Address of the storage of the published model, for the lines that load it; None: without these lines.
        depth: How the model sees images of 16 bits a channel.
    """
    # Texts of the user are escaped by Jinja or, inside charts, by matplotlib.
    metrics = report.metrics
    names = [row.name for row in metrics.per_class]
    splits = _splits(report.counts)
    phases = _phases(report)
    pairs = _confused_pairs(metrics)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            storage=storage,
            metrics=metrics,
            headline=headline(report),
            beside=beside(report),
            kept=final_epoch_text(report.kept) if report.kept else None,
            beats_commonest_class=beats_commonest_class(metrics),
            validated=_validation_interval(report),
            phases=list(phases.values()),
            open_rows=_OPEN_ROWS,
            numbered=len(names) > charts.MAX_NAMED_CLASSES,
            crowded=_MAX_NARROW_CLASSES < len(names) <= charts.MAX_NAMED_CLASSES,
            curves=_curves(report, {number: phase.title for number, phase in phases.items()}),
            has_validation=any(row.validation_loss is not None for row in report.history),
            seconds=sum(row.seconds for row in report.history),
            spent=spent_of(report),
            matrix=Markup(charts.confusion_chart(metrics.confusion, names)),  # noqa: S704 - matplotlib escapes class names
            pairs=pairs[:_MAX_PAIRS],
            classes=_worst_first(metrics),
            untrained=report.untrained_classes,
            loss_of_untrained=-math.log(SMALLEST_PROBABILITY),
            absent=[row.name for row in metrics.per_class if row.support == 0],
            groups=_grouped(report.mistakes, pairs, thumbnails, depth),
            wrong=metrics.images - metrics.right,
            splits=splits,
            totals=[sum(report.counts[split].values()) for split in splits],
            counts=_fewest_first(report.counts, splits),
            is_published=_section(report.config, "publish").get("enabled", True),
            config=yaml.safe_dump(_shown(report.config), sort_keys=False, allow_unicode=True, width=100),
        )
        .lstrip()
    )


def _validation_interval(report: Report) -> Interval | None:
    """Confidence interval of the validation accuracy; None if it or the number of images is unknown."""
    images = sum(report.counts.get("validation", {}).values())
    if report.validation_accuracy is None or not images:
        return None
    return wilson_interval(round(report.validation_accuracy * images), images)


def _phases(report: Report) -> dict[int, PhaseFacts]:
    """The trained phases, by number. Configurations of other releases may have fewer of their keys."""
    told = report.config.get("phases")
    found = {}
    for number in dict.fromkeys(row.phase for row in report.history):
        phase: Any = told[number] if isinstance(told, list) and number < len(told) else None
        phase = phase if isinstance(phase, dict) else {}
        unfreeze, rate = phase.get("unfreeze"), phase.get("learning_rate")
        rank = _section(phase, "lora").get("rank")
        found[number] = PhaseFacts(
            title=unfreeze_title(unfreeze, rank=rank) if isinstance(unfreeze, int | str) else f"phase {number}",
            epochs=sum(row.phase == number for row in report.history),
            learning_rate=rate if isinstance(rate, int | float) else None,
            optimizer=_section(phase, "optimizer").get("name"),
        )
    return found


def _shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the default of `base.weights` if a file brings the weights, because it is not used."""
    base = dict(_section(config, "base"))
    if base.get("weights") == "imagenet" and brings_weights(str(base.get("model"))):
        del base["weights"]
    return {**config, **({"base": base} if base else {})}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _curves(report: Report, titles: charts.Titles) -> list[tuple[str, Markup]]:
    if not report.history:
        return []
    drawn = (
        ("Loss", charts.loss_chart(report.history, titles)),
        ("Accuracy", charts.accuracy_chart(report.history, titles)),
        ("Learning rate", charts.learning_rate_chart(report.history, titles)),
    )
    return [(title, Markup(svg)) for title, svg in drawn]  # noqa: S704 - matplotlib escapes names of layers


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
    # Sorting is stable, so equal pairs stay in the order of class indices.
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))


def _grouped(
    mistakes: list[Mistake], pairs: list[ConfusedPair], thumbnails: Mapping[str, bytes], depth: Depth
) -> list[MistakeGroup]:
    """The pairs with several pictures, the most confused first, then all other pictures together."""
    of_pair: dict[tuple[str, str], list[tuple[Mistake, Thumbnail | None]]] = {}
    for mistake in mistakes:
        picture = make_thumbnail(thumbnails[mistake.sha256], depth) if mistake.sha256 in thumbnails else None
        of_pair.setdefault((mistake.truth, mistake.predicted), []).append((mistake, picture))
    groups = [MistakeGroup(pair, tuple(of_pair.get((pair.truth, pair.predicted), ()))) for pair in pairs]
    several = [group for group in groups if len(group.mistakes) > 1]
    single = [group.mistakes[0] for group in groups if len(group.mistakes) == 1]
    return [*several, MistakeGroup(None, tuple(single))] if single else several


def _worst_first(metrics: Metrics) -> list[tuple[int, ClassMetrics]]:
    """Classes with their indices, by increasing F1; classes without images in the split are last."""
    rows = list(enumerate(metrics.per_class))
    return sorted(rows, key=lambda row: (row[1].f1 is None, row[1].f1 or 0.0))


def _splits(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    known = [split for split in _SPLIT_ORDER if split in counts]
    return known + sorted(set(counts) - set(known))


def _fewest_first(counts: Mapping[str, Mapping[str, int]], splits: list[str]) -> list[ClassCounts]:
    names = dict.fromkeys(name for split in splits for name in counts[split])
    rows = [ClassCounts(name, tuple(counts[split].get(name, 0) for split in splits)) for name in names]
    return sorted(rows, key=lambda row: row.total)
