"""Comparison of champion and challenger, from their predictions for the same held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transfer.config import GateConfig
from transfer.errors import DatasetError
from transfer.evaluation.metrics import Figures, Interval, Metrics, bootstrap_interval, compute_metrics, mcnemar
from transfer.evaluation.predictions import Predictions, in_classes

MAX_FLIPS = 24
"""Largest number of gained images that are shown, and of lost ones."""


class Side(Figures):
    """Figures of one model version. `latency_ms`: median for one image. `metrics`: on the compared images."""

    version: int
    run: str
    dataset: str
    metrics: Metrics
    latency_ms: float
    size_bytes: int


class ClassRecall(Figures):
    """Recall of one class on the compared images; `champion` is None if there is none or it does not know the class."""

    name: str
    images: int
    champion: float | None
    challenger: float | None

    @property
    def change(self) -> float | None:
        """Recall of the challenger minus that of the champion; None if one of them is missing.

        The difference is counted in images: a loss of 2 of 10 images is exactly 0.2, without float rounding.
        """
        if self.champion is None or self.challenger is None:
            return None
        return (round(self.challenger * self.images) - round(self.champion * self.images)) / self.images


class Flip(Figures):
    """An image that only one of the two models predicts correctly."""

    key: str
    sha256: str
    truth: str
    champion: str
    challenger: str


class Comparison(Figures):
    """Both models on the same held-out images, image by image.

    `left_out`: number of held-out images that the champion may have been trained on. `difference`: accuracy of the
    challenger minus that of the champion. `interval`: paired bootstrap interval of the difference; each end has the
    gate's one-sided confidence. `p_value`: one-sided exact McNemar test. `gained`, `lost`: numbers of images that only
    the challenger, or only the champion, predicts correctly; `flips` has some of both. Without a champion all of these
    are None, 0 or empty.
    """

    images: int
    left_out: int
    challenger: Side
    champion: Side | None = None
    difference: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    gained: int = 0
    lost: int = 0
    classes: list[ClassRecall]
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The images that both models predict, as the new dataset version lists them.

    `keys` and `digests` (SHA-256, hex): one for each of the n images. `labels`: int32 [n]. `comparable`: bool [n],
    False for images that the champion may have been trained on. `classes`: names in the order of their indices.
    """

    keys: list[str]
    digests: list[str]
    labels: np.ndarray
    comparable: np.ndarray
    classes: list[str]


@dataclass(frozen=True, eq=False)
class Contender:
    """A model version and its predictions for the held-out images.

    `classes`: the model's classes in the order of its outputs, named as in the new dataset version.
    `probabilities`: float32 [n, classes]. `latency_ms`: median for one image.
    """

    version: int
    run: str
    dataset: str
    size_bytes: int
    latency_ms: float
    classes: list[str]
    probabilities: np.ndarray


def compare(challenger: Contender, champion: Contender | None, images: HeldOut, gate: GateConfig) -> Comparison:
    """Compute the metrics of both models on the comparable images; without a champion those of the challenger alone.

    Raises DatasetError if no image is comparable.
    """
    rows = np.flatnonzero(images.comparable)
    if not len(rows):
        raise DatasetError(
            f"None of the {len(images.keys)} held-out images can be compared on: the champion may have been trained on "
            "all of them.",
            advice="Go back to the shares that it was trained with, or let another version serve without a comparison: "
            "`transfer registry rollback --to`.",
        )
    after = _predictions(challenger, images, rows)
    ours = _side(challenger, after)
    counts = {"images": len(rows), "left_out": len(images.keys) - len(rows)}
    if champion is None:
        return Comparison(**counts, challenger=ours, classes=_recalls(images.classes, ours, None, known=set()))
    before = _predictions(champion, images, rows)
    theirs = _side(champion, before)
    labels = images.labels[rows]
    differences = (after.predicted == labels).astype(np.int8) - (before.predicted == labels).astype(np.int8)
    gained, lost = np.flatnonzero(differences > 0), np.flatnonzero(differences < 0)
    digests = [images.digests[row] for row in rows]
    return Comparison(
        **counts,
        challenger=ours,
        champion=theirs,
        # The difference of two rounded shares can be below 0.03 although 3 more of 100 images are correct.
        difference=(len(gained) - len(lost)) / len(rows),
        interval=bootstrap_interval(differences, confidence=gate.confidence, seed=0),
        p_value=mcnemar(len(gained), len(lost)),
        gained=len(gained),
        lost=len(lost),
        classes=_recalls(images.classes, ours, theirs, known=set(champion.classes)),
        flips=(*_flips(gained, after, before, digests), *_flips(lost, after, before, digests)),
    )


def _predictions(contender: Contender, images: HeldOut, rows: np.ndarray) -> Predictions:
    classes, probabilities = in_classes(contender.probabilities[rows], contender.classes, images.classes)
    return Predictions([images.keys[row] for row in rows], images.labels[rows], probabilities, classes)


def _side(contender: Contender, predictions: Predictions) -> Side:
    return Side(
        version=contender.version,
        run=contender.run,
        dataset=contender.dataset,
        metrics=compute_metrics(predictions),
        latency_ms=contender.latency_ms,
        size_bytes=contender.size_bytes,
    )


def _recalls(classes: list[str], challenger: Side, champion: Side | None, *, known: set[str]) -> list[ClassRecall]:
    rows = []
    for index, name in enumerate(classes):
        after = challenger.metrics.per_class[index]
        before = champion.metrics.per_class[index].recall if champion is not None and name in known else None
        rows.append(ClassRecall(name=name, images=after.support, champion=before, challenger=after.recall))
    return rows


def _flips(rows: np.ndarray, after: Predictions, before: Predictions, digests: list[str]) -> list[Flip]:
    """The images with the challenger's highest confidence, whether it is right or wrong; ties are sorted by key."""
    sure = after.probabilities[rows].max(axis=1)
    order = sorted(range(len(rows)), key=lambda place: (-sure[place], after.keys[rows[place]]))
    return [
        Flip(
            key=after.keys[row],
            sha256=digests[row],
            truth=after.classes[after.labels[row]],
            champion=before.classes[before.predicted[row]],
            challenger=after.classes[after.predicted[row]],
        )
        for row in rows[order[:MAX_FLIPS]]
    ]
