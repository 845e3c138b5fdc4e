"""Comparison of champion and challenger, from their predictions for the same held-out images."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from transfer.config import GateConfig
from transfer.errors import DatasetError
from transfer.evaluation.metrics import Figures, Interval, Metrics, Tally, bootstrap_interval, mcnemar
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
    """Images that both models predict, as the new dataset version lists them.

    `keys` and `digests` (SHA-256, hex): one for each of the n images. `labels`: int32 [n]. `comparable`: bool [n],
    False for images that the champion may have been trained on. `classes`: names in the order of their indices.
    """

    keys: list[str]
    digests: list[str]
    labels: np.ndarray
    comparable: np.ndarray
    classes: list[str]


@dataclass(frozen=True, eq=False)
class Answered:
    """Predictions of a model version for held-out images.

    `classes`: the model's classes in the order of its outputs, named as in the new dataset version. `probabilities`:
    float32 [n, classes].
    """

    classes: list[str]
    probabilities: np.ndarray


@dataclass
class Judged:
    """What a comparison is computed from. `+=` adds other images of the same two models.

    `champion`: None if there is none. `left_out`: number of images that the champion may have been trained on.
    `gained`, `lost`: numbers of images that only the challenger, or only the champion, predicts correctly. `gains`,
    `losses`: those of which the challenger is surest, at most 24 each, with its probability.
    """

    challenger: Tally
    champion: Tally | None
    left_out: int = 0
    gained: int = 0
    lost: int = 0
    gains: list[tuple[float, Flip]] = field(default_factory=list)
    losses: list[tuple[float, Flip]] = field(default_factory=list)

    def __iadd__(self, other: Judged) -> Self:
        self.challenger += other.challenger
        if self.champion is not None and other.champion is not None:
            self.champion += other.champion
        self.left_out += other.left_out
        self.gained += other.gained
        self.lost += other.lost
        self.gains = _surest([*self.gains, *other.gains])
        self.losses = _surest([*self.losses, *other.losses])
        return self

    @property
    def flips(self) -> tuple[Flip, ...]:
        """Some gained images, then some lost ones."""
        return tuple(flip for _, flip in (*self.gains, *self.losses))


def judge(images: HeldOut, challenger: Answered, champion: Answered | None) -> Judged:
    """Count what a comparison needs to know of some images; without a champion, of the challenger alone."""
    after = _predictions(challenger, images)
    before = _predictions(champion, images) if champion else None
    judged = Judged(Tally.of(after), Tally.of(before) if before else None, left_out=int(np.sum(~images.comparable)))
    if before is None:
        return judged
    ours, theirs = after.predicted == after.labels, before.predicted == before.labels
    gained, lost = np.flatnonzero(ours & ~theirs), np.flatnonzero(theirs & ~ours)
    judged.gained, judged.lost = len(gained), len(lost)
    digests = [images.digests[row] for row in np.flatnonzero(images.comparable)]
    judged.gains, judged.losses = (_surest(_flips(rows, after, before, digests)) for rows in (gained, lost))
    return judged


@dataclass(frozen=True)
class Contender:
    """A model version that is compared, whose classes are named as in the new dataset version."""

    version: int
    run: str
    dataset: str
    size_bytes: int
    latency_ms: float
    classes: list[str]


def compare(
    judged: Judged, challenger: Contender, champion: Contender | None, *, classes: list[str], gate: GateConfig
) -> Comparison:
    """Compute the metrics of both models on the comparable images; without a champion those of the challenger alone.

    `classes`: of the new dataset version. Raises DatasetError if no image is comparable.
    """
    images = judged.challenger.images
    if not images:
        raise DatasetError(
            f"None of the {judged.left_out} held-out images can be compared on: the champion may have been trained on "
            "all of them.",
            advice="Go back to the shares that it was trained with, or let another version serve without a comparison: "
            "`transfer registry rollback --to`.",
        )
    ours = _side(challenger, judged.challenger)
    counts = {"images": images, "left_out": judged.left_out}
    if champion is None or judged.champion is None:
        return Comparison(**counts, challenger=ours, classes=_recalls(classes, ours, None, known=set()))
    theirs = _side(champion, judged.champion)
    gained, lost = judged.gained, judged.lost
    return Comparison(
        **counts,
        challenger=ours,
        champion=theirs,
        # The difference of two rounded shares can be below 0.03 although 3 more of 100 images are correct.
        difference=(gained - lost) / images,
        interval=bootstrap_interval(gained, lost, images=images, confidence=gate.confidence, seed=0),
        p_value=mcnemar(gained, lost),
        gained=gained,
        lost=lost,
        classes=_recalls(classes, ours, theirs, known=set(champion.classes)),
        flips=judged.flips,
    )


def _predictions(answered: Answered, images: HeldOut) -> Predictions:
    """The predictions for the comparable images."""
    rows = np.flatnonzero(images.comparable)
    classes, probabilities = in_classes(answered.probabilities[rows], answered.classes, images.classes)
    return Predictions([images.keys[row] for row in rows], images.labels[rows], probabilities, classes)


def _side(contender: Contender, tally: Tally) -> Side:
    return Side(
        version=contender.version,
        run=contender.run,
        dataset=contender.dataset,
        metrics=tally.metrics(),
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


def _flips(
    rows: np.ndarray, after: Predictions, before: Predictions, digests: list[str]
) -> Iterator[tuple[float, Flip]]:
    sure = after.probabilities.max(axis=1)
    ours, theirs = after.predicted, before.predicted
    for row in rows:
        flip = Flip(
            key=after.keys[row],
            sha256=digests[row],
            truth=after.classes[after.labels[row]],
            champion=before.classes[theirs[row]],
            challenger=after.classes[ours[row]],
        )
        yield float(sure[row]), flip


def _surest(flips: Iterable[tuple[float, Flip]]) -> list[tuple[float, Flip]]:
    """The images with the challenger's highest confidence, right or wrong; ties are sorted by key, then by digest."""
    return heapq.nsmallest(MAX_FLIPS, flips, key=lambda each: (-each[0], each[1].key, each[1].sha256))
