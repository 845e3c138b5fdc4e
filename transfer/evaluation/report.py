"""The report of one evaluation, as JSON, and its verdict in words. `page.py` makes it one HTML file."""

from __future__ import annotations

import json

from pydantic import JsonValue, ValidationError

from transfer.catalog.run import EpochRow
from transfer.config import ServingGraph
from transfer.errors import DatasetError
from transfer.evaluation.against import AgainstServing
from transfer.evaluation.metrics import Figures, Metrics, Mistake, beats_commonest_class
from transfer.runtime.numbers import percent
from transfer.training.history import FinalEpoch


def headline(report: Report) -> str:
    """The verdict, in one sentence."""
    if not beats_commonest_class(report.metrics):
        return "No better than the commonest class."
    return f"{_right(report)}."


def beside(report: Report) -> list[str]:
    """What the verdict is set beside: its interval, the commonest class, the version that served then."""
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
    return [first, *([report.serving.text] if report.serving else [])]


def final_epoch_text(kept: FinalEpoch) -> str:
    """Which epoch's weights a run ended with, and why."""
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
    the most confident ones, worst first. `counts`: images of each class in each split, {split: {class: n}}. `config`:
    the resolved configuration. `validation_accuracy`: of the evaluated weights, as training measured it; None where
    there is no validation split, where it is the one that was evaluated, and in reports of earlier releases. `graph`:
    the `publish.graph` that answered; None in reports of earlier releases. `is_exact`: whether it was that very graph,
    and not a faster way that rounds otherwise. `rounds_coarsely`: whether it computed in half precision somewhere, or
    on a GPU in TF32. `kept`: the epoch whose weights were evaluated. `weights`: where those of the base came from, in
    words. Both are None in reports of earlier releases. `serving`: the version that served then, None where none did,
    or one of this very run. `untrained_classes`: those without training images, which are never answered; a network of
    an earlier release answered them, too, and its report names none. `split_by`: how images came to be in their
    splits, in words; None in reports of earlier releases.
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
    untrained_classes: tuple[str, ...] = ()
    split_by: str | None = None

    def to_json(self) -> bytes:
        """UTF-8 JSON: the same report always gives the same bytes, and every number in it is finite."""
        document = self.model_dump(mode="json")
        return (json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Report:
        """Read what `to_json` wrote. Raises DatasetError when it is something else."""
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
