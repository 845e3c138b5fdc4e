"""The outcome of `train` and `sweep`: as an object for programs, in words for people."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from transfer.dataset.manifest import DROPPED, IGNORED, Dataset
from transfer.dataset.splits import SPLITS
from transfer.evaluation.baselines import Baselines
from transfer.evaluation.metrics import Interval, beats_commonest_class, wilson_interval
from transfer.evaluation.report import final_epoch_text, spent_of
from transfer.jobs import TrainOutcome
from transfer.promotion import PromotionChoice
from transfer.runtime.numbers import duration, percent, size
from transfer.screening.result import ScreenResult
from transfer.training.history import FinalEpoch, final_row, kept_epoch


def for_programs(outcome: TrainOutcome) -> dict[str, Any]:
    """The outcome of a run with all its figures."""
    report, dataset = outcome.report, outcome.dataset
    metrics = report.metrics
    return {
        "run": outcome.run.id,
        "dataset": dataset.reference,
        "images": {split: dataset.rows(split) for split in SPLITS},
        "rejected": dataset.reject_counts,
        "split": report.split,
        "accuracy": metrics.accuracy,
        "accuracy_interval": metrics.accuracy_interval.model_dump(),
        "loss": metrics.loss,
        "validation_accuracy": _validation_accuracy(outcome),
        "commonest_class": {"name": metrics.commonest_class.name, "accuracy": metrics.commonest_class_accuracy},
        "beats_commonest_class": beats_commonest_class(metrics),
        "baselines": baselines_for_programs(report.baselines),
        "untrained_classes": list(report.untrained_classes),
        "against_serving": report.serving.model_dump() if report.serving else None,
        "weights_of": _kept(outcome).model_dump(),
        "seconds": dict(outcome.seconds),
        "spent": vars(spent) if (spent := spent_of(report)) else None,
        "report": outcome.report_uri,
        **version_for_programs(outcome.choice),
        "epochs": [row.model_dump() for row in report.history],
    }


def baselines_for_programs(baselines: Baselines | None) -> dict[str, Any] | None:
    """The baselines of a report with their figures, by name, and what follows in words."""
    if baselines is None:
        return None
    figures = {
        each.name: {
            "images": each.images,
            "accuracy": each.accuracy,
            "difference": each.difference,
            "interval": each.interval.model_dump(),
        }
        for each in baselines.made
    }
    return {"made": figures, "not_made": baselines.not_made, "verdict": baselines.verdict}


def screen_for_programs(result: ScreenResult, page: str) -> dict[str, Any]:
    """A screen with all its figures."""
    estimates = [{"extraction_s": result.extraction_s(cut), "epoch_s": result.epoch_s(cut)} for cut in result.cuts]
    found = result.model_dump(mode="json")
    found["cuts"] = [cut | estimate for cut, estimate in zip(found["cuts"], estimates, strict=True)]
    return found | {"set": list(result.best.settings) if result.best else [], "page": page}


def screen_for_people(result: ScreenResult, page: str) -> dict[str, Any]:
    """A screen as a table, the best network first, and how to use that one."""
    networks = [
        {
            "network": cut.title,
            "linear probe": f"{percent(cut.accuracy)} ({percent(cut.interval.low)} to {percent(cut.interval.high)})",
            "neighbors": percent(cut.neighbours),
            "LogME": f"{cut.logme:.3f}",
            "ms an image": f"{cut.ms:.3g}",
            "weights": size(cut.size_bytes),
            "extraction": duration(result.extraction_s(cut)),
            "epoch of all blocks": duration(result.epoch_s(cut)),
        }
        for cut in result.cuts
    ]
    return {
        "dataset": result.dataset,
        "images": f"{result.images:,} of {result.training_images:,} training images",
        "networks": networks,
        "left out": [each.model_dump() for each in result.failed],
        "to use the best": shlex.join(arg for each in result.best.settings for arg in ("--set", each))
        if result.best
        else None,
        "page": page,
    }


def for_people(outcome: TrainOutcome) -> dict[str, Any]:
    """The outcome of a run in a few lines."""
    report, dataset = outcome.report, outcome.dataset
    metrics = report.metrics
    commonest = f"{percent(metrics.commonest_class_accuracy)}, by always answering `{metrics.commonest_class.name}`"
    return {
        "run": outcome.run.id,
        "dataset": dataset.reference,
        "images": ", ".join(f"{dataset.rows(split):,} {split}" for split in SPLITS if dataset.rows(split)),
        "rejected": _rejected(dataset),
        "validation accuracy": _validated(outcome) if report.split != "validation" else None,
        f"{report.split} accuracy": _accuracy(metrics.accuracy, metrics.accuracy_interval, metrics.images),
        "commonest class": commonest,
        "baselines": report.baselines.verdict or None if report.baselines else None,
        "never answered": _never_answered(report.untrained_classes),
        "against what served": report.serving.text if report.serving else None,
        "warning": None if beats_commonest_class(metrics) else "the network is no better than the commonest class",
        "weights of": final_epoch_text(_kept(outcome)),
        "time": _time(outcome),
        "training took": spent.text if (spent := spent_of(report)) else None,
        "report": outcome.report_uri,
        **version_for_people(outcome.choice),
    }


def version_for_people(choice: PromotionChoice | None) -> dict[str, Any]:
    """A published version; in sentences what serves now, since when, and why the version waits, if it does."""
    if choice is None:
        return {}
    return {
        "version": f"{choice.version.number}, in {choice.storage}/{choice.version.folder}",
        "what serves": choice.why,
    }


def version_for_programs(choice: PromotionChoice | None) -> dict[str, Any]:
    """The same as separate values."""
    if choice is None:
        return {"version": None, "model": None}
    return {
        "version": choice.version.number,
        "model": f"{choice.storage}/{choice.version.folder}",
        "serves": choice.serving.version == choice.version.number,
        "promoted_now": choice.promoted,
        "serving": choice.serving.version,
        "what_serves": choice.why,
    }


def _kept(outcome: TrainOutcome) -> FinalEpoch:
    return kept_epoch(outcome.report.history, outcome.run.config.phases)


def _time(outcome: TrainOutcome) -> str:
    steps = ", ".join(f"{step} {duration(seconds)}" for step, seconds in outcome.seconds.items())
    return f"{duration(sum(outcome.seconds.values()))}: {steps}"


def _validated(outcome: TrainOutcome) -> str | None:
    accuracy, images = _validation_accuracy(outcome), outcome.dataset.rows("validation")
    if accuracy is None:
        return None
    return _accuracy(accuracy, wilson_interval(round(accuracy * images), images), images)


def _validation_accuracy(outcome: TrainOutcome) -> float | None:
    """Validation accuracy in training of the weights with which the run ended."""
    return final_row(outcome.report.history, outcome.run.config.phases).validation_accuracy


def _accuracy(accuracy: float, interval: Interval, images: int) -> str:
    return (
        f"{percent(accuracy)} of {images:,} images (95 % interval {percent(interval.low)} to {percent(interval.high)})"
    )


def _never_answered(classes: Sequence[str]) -> str | None:
    if not classes:
        return None
    named = ", ".join(f"`{name}`" for name in classes[:5])
    return f"{named}{', …' if len(classes) > 5 else ''} (no training images)"


def _rejected(dataset: Dataset) -> str | None:
    # Files that the configuration leaves out are not reported.
    counts = {reason: count for reason, count in dataset.reject_counts.items() if reason not in {IGNORED, DROPPED}}
    if not counts:
        return None
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
    total = sum(counts.values())
    return f"{total:,} file{'s' if total > 1 else ''} ({reasons}), listed in {dataset.rejects}"
