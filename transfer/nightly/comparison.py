"""Champion and challenger beside each other, from what both answered for the same held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.config import GateConfig
from transfer.dataset.splits import SPLITS, split_indices
from transfer.errors import DatasetError
from transfer.evaluation.metrics import compute_metrics
from transfer.evaluation.predictions import Predictions
from transfer.nightly.significance import bootstrap_interval, mcnemar
from transfer.nightly.summary import ClassRecall, Comparison, Flip, Side

MAX_FLIPS = 24
"""Images that are shown of those gained, and of those lost."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The images that both models are asked about, as the new dataset version has them.

    `keys` and `digests` (SHA-256, hex): n of each. `labels`: int32 [n]. `comparable`: bool [n], False for images that
    the champion may have been trained on. `classes`: names in the order of their indices.
    """

    keys: list[str]
    digests: list[str]
    labels: np.ndarray
    comparable: np.ndarray
    classes: list[str]


@dataclass(frozen=True, eq=False)
class Contender:
    """A model version and what it answered for the held-out images.

    `classes`: what it tells apart, in the order of its outputs, named as in the new dataset version.
    `probabilities`: float32 [n, classes]. `latency_ms`: median for one image.
    """

    version: int
    run: str
    dataset: str
    size_bytes: int
    latency_ms: float
    classes: list[str]
    probabilities: np.ndarray


def never_trained_on(digests: Sequence[str], split: str, trained_with: Mapping[str, Any]) -> np.ndarray:
    """Whether a model kept each image of a split at least as far from its training: bool [n].

    An image's split follows from its SHA-256 in `digests` and the shares of the model's own configuration, its section
    `dataset`. Of the test split, what the model had in its test split counts; of the validation split, that and what it
    had in its validation split.
    """
    heads = np.frombuffer(bytes.fromhex("".join(digest[:16] for digest in digests)), ">u8").astype(np.uint64)
    splits = split_indices(heads, validation=trained_with["validation"], test=trained_with["test"])
    return splits >= SPLITS.index(split)


def compare(challenger: Contender, champion: Contender | None, images: HeldOut, gate: GateConfig) -> Comparison:
    """Judge both on the comparable images; the challenger alone where there is no champion.

    Raises DatasetError when no image is comparable.
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
        # Not the difference of two rounded shares: a margin of 0.03 is met by 3 more of 100.
        difference=(len(gained) - len(lost)) / len(rows),
        interval=bootstrap_interval(differences, confidence=gate.confidence, seed=0),
        p_value=mcnemar(len(gained), len(lost)),
        gained=len(gained),
        lost=len(lost),
        classes=_recalls(images.classes, ours, theirs, known=set(champion.classes)),
        flips=(*_flips(gained, after, before, digests), *_flips(lost, after, before, digests)),
    )


def _predictions(contender: Contender, images: HeldOut, rows: np.ndarray) -> Predictions:
    """Answers in the dataset's classes. One that the model does not know has probability 0.

    What only the model knows follows at the end, so that an image taken for it counts as wrong.
    """
    classes = list(dict.fromkeys([*images.classes, *contender.classes]))
    place = {name: index for index, name in enumerate(classes)}
    probabilities = np.zeros((len(rows), len(classes)), np.float32)
    # Added up: two classes of an older model may have become one since.
    for output, name in enumerate(contender.classes):
        probabilities[:, place[name]] += contender.probabilities[rows, output]
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
    """The images of which the challenger is surest, whether it is right or wrong; equal ones by key."""
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
