"""The report of one evaluation, as JSON, and its summary in words. `page.py` renders it as HTML."""

from __future__ import annotations

import json

from pydantic import JsonValue, ValidationError

from transfer.catalog.run import EpochRow
from transfer.config import CostConfig, ServingGraph
from transfer.errors import DatasetError
from transfer.evaluation.against import AgainstServing
from transfer.evaluation.baselines import Baselines
from transfer.evaluation.metrics import Figures, Metrics, beats_commonest_class
from transfer.evaluation.mistakes import Mistake
from transfer.runtime.numbers import percent
from transfer.training.history import FinalEpoch
from transfer.training.usage import Spent, spent


def headline(report: Report) -> str:
    """The result in one sentence."""
    if not beats_commonest_class(report.metrics):
        return "No better than the commonest class."
    return f"{_right(report)}."


def beside(report: Report) -> list[str]:
    """Values to compare the result with: its interval, the commonest class, baselines, the version that served then."""
    metrics = report.metrics
    interval = f"{percent(metrics.accuracy_interval.low)} to {percent(metrics.accuracy_interval.high)}"
    commonest = (
        f"Always answering {metrics.commonest_class.name} would be right for {metrics.commonest_class.support:,} "
        f"({percent(metrics.commonest_class_accuracy)})."
    )
    if beats_commonest_class(metrics):
        first = f"The 95 % interval of its accuracy is {interval}. {commonest}"
    else:
        first = f"{_right(report)} (95 % interval {interval}). {commonest}"
    verdict = report.baselines.verdict if report.baselines else ""
    return [first, *([verdict] if verdict else []), *([report.serving.text] if report.serving else [])]


def spent_of(report: Report) -> Spent | None:
    """What training took, reckoned by the section `cost` of the report's configuration; None if it is not known."""
    return spent(report.history, CostConfig.model_validate(report.config.get("cost", {})))


def final_epoch_text(kept: FinalEpoch) -> str:
    """The epoch whose weights a run ended with, and why."""
    place = f"epoch {kept.epoch} of {kept.of} of phase {kept.phase}"
    if kept.best_by is None or kept.value is None:
        return f"{place}, the last one"
    value = percent(kept.value) if kept.best_by == "accuracy" else f"{kept.value:.4f}"
    return f"{place}, the best by validation {kept.best_by} ({value})"


def _right(report: Report) -> str:
    metrics = report.metrics
    images = f"{metrics.images:,} {report.split} image{'' if metrics.images == 1 else 's'}"
    return f"Right for {metrics.right:,} of {images}"


class Report(Figures):
    """What is known about a run after its evaluation on one split.

    `dataset`: reference of the dataset version, `name/00000001`. `base`: the pretrained network, in words. `mistakes`:
    the most confident mistakes first. `counts`: number of images, {split: {class: n}}. `config`: the resolved
    configuration. `validation_accuracy`: accuracy of the evaluated weights in training; None without a validation
    split, or if that split was evaluated. `graph`: the `publish.graph` that computed the predictions. `is_exact`:
    whether that graph itself computed them, not a faster way with other rounding. `rounds_coarsely`: whether some of it
    was computed in half precision, or in TF32 on a GPU. `kept`: the epoch whose weights were evaluated. `weights`:
    origin of the weights of the base, in words. `serving`: the version that served then; None if none did, or one of
    this run. `untrained_classes`: classes without training images, which the model never predicts; networks of earlier
    releases predicted them, and their reports name none. `split_by`: how images were assigned to splits, in words.
    Reports of earlier releases have None for the fields that their release lacked.
    """

    name: str
    dataset: str
    run_id: str
    split: str
    base: str
    metrics: Metrics
    history: list[EpochRow]
    mistakes: list[Mistake]
    counts: dict[str, dict[str, int]]
    config: dict[str, JsonValue]
    validation_accuracy: float | None = None
    graph: ServingGraph | None = None
    is_exact: bool = True
    rounds_coarsely: bool = False
    kept: FinalEpoch | None = None
    weights: str | None = None
    serving: AgainstServing | None = None
    baselines: Baselines | None = None
    untrained_classes: tuple[str, ...] = ()
    split_by: str | None = None

    def to_json(self) -> bytes:
        """Encode as UTF-8 JSON. The same report always gives the same bytes, and every number is finite."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what `to_json` wrote. Raises DatasetError for anything else."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "the document"
            raise DatasetError(
                f"This is not a report of this version of the library: {place}: {first['msg']} "
                f"({error.error_count()} problems).",
                advice="Evaluate the run again.",
            ) from error
