"""How good predictions are, in numbers."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.evaluation.predictions import Predictions

# The smallest probability that counts, as in Keras' cross-entropy: one certain mistake must not make the mean infinite.
_SMALLEST_PROBABILITY = 1e-7
_TOP_K = (3, 5)
_CONFIDENCE = 0.95


class Figures(BaseModel):
    """Results as they are stored: immutable, finite, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(Figures):
    """A 95 % confidence interval."""

    low: float
    high: float


class Averages(Figures):
    """Means over the classes that have images in the split, each class counting the same."""

    precision: float
    recall: float
    f1: float


class ClassMetrics(Figures):
    """One class. Precision, recall and F1 are None for a class without images in the split: nothing was measured."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Metrics(Figures):
    """All figures of one split.

    `loss`: mean cross-entropy in nats. `top_k`: share of images whose true class is among the k most probable, for k of
    3 and 5 where there are more classes than that. `per_class`: in the order of class indices. `confusion`: counts
    [truth][predicted].
    """

    images: int
    loss: float
    accuracy: float
    accuracy_interval: Interval
    top_k: dict[int, float]
    macro: Averages
    per_class: list[ClassMetrics]
    confusion: list[list[int]]


class Mistake(Figures):
    """An image for which the model preferred a wrong class."""

    key: str
    truth: str
    truth_probability: float
    predicted: str
    predicted_probability: float


def compute_metrics(predictions: Predictions) -> Metrics:
    """Every figure of the report, from the predictions of one split."""
    labels, classes = predictions.labels, predictions.classes
    of_truth = np.take_along_axis(predictions.probabilities, labels[:, None], axis=1)[:, 0].astype(np.float64)
    ranks = _ranks_of_truth(predictions)
    correct = int(np.sum(ranks == 0))
    confusion = _confusion(predictions)
    per_class, macro = _class_metrics(classes, confusion)
    return Metrics(
        images=len(labels),
        loss=float(-np.log(np.clip(of_truth, _SMALLEST_PROBABILITY, 1.0)).mean()) + 0.0,  # + 0.0: never -0.0
        accuracy=correct / len(labels),
        accuracy_interval=wilson_interval(correct, len(labels)),
        top_k={k: float(np.mean(ranks < k)) for k in _TOP_K if len(classes) > k},
        macro=macro,
        per_class=per_class,
        confusion=confusion.tolist(),
    )


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share, at 95 %. It stays within 0 to 1 and is sound for few trials."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = successes / trials
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    margin = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # The ends of all wrong and all right are exact; rounding would leave 0.9999999999999999.
    return Interval(
        low=0.0 if successes == 0 else float(center - margin),
        high=1.0 if successes == trials else float(center + margin),
    )


def worst_mistakes(predictions: Predictions, count: int) -> list[Mistake]:
    """Return the `count` most confident mistakes, the most confident first.

    Equal confidence is decided by the lower probability of the truth, then by key, so that the order never varies.
    """
    predicted = predictions.predicted
    rows = np.flatnonzero(predicted != predictions.labels)
    mistakes = [
        Mistake(
            key=predictions.keys[row],
            truth=predictions.classes[predictions.labels[row]],
            truth_probability=float(predictions.probabilities[row, predictions.labels[row]]),
            predicted=predictions.classes[predicted[row]],
            predicted_probability=float(predictions.probabilities[row, predicted[row]]),
        )
        for row in rows
    ]
    mistakes.sort(key=lambda mistake: (-mistake.predicted_probability, mistake.truth_probability, mistake.key))
    return mistakes[:count]


def _ranks_of_truth(predictions: Predictions) -> np.ndarray:
    """How many classes stand before the true one, int [n]: 0 where the prediction is right.

    Among equal probabilities the lower index stands first, as for `argmax`. scikit-learn's top-k puts the higher index
    first, by which an image could be right and yet not among the first three.
    """
    probabilities, labels = predictions.probabilities, predictions.labels[:, None]
    of_truth = np.take_along_axis(probabilities, labels, axis=1)
    equal_and_before = (probabilities == of_truth) & (np.arange(probabilities.shape[1]) < labels)
    ranks: np.ndarray = np.sum((probabilities > of_truth) | equal_and_before, axis=1)
    return ranks


def _confusion(predictions: Predictions) -> np.ndarray:
    """Images by true class (row) and predicted class (column), int64 [classes, classes]."""
    # Importing scikit-learn for it would take longer than all the rest of an evaluation; a test compares with it.
    count = len(predictions.classes)
    pairs = predictions.labels.astype(np.int64) * count + predictions.predicted
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def _class_metrics(classes: list[str], confusion: np.ndarray) -> tuple[list[ClassMetrics], Averages]:
    correct, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    # As in scikit-learn, a class that is never predicted has precision 0.
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(support, 1)
    f1 = 2 * correct / np.maximum(support + predicted, 1)
    present = support > 0
    rows = [
        ClassMetrics(
            name=name,
            support=int(support[index]),
            predicted=int(predicted[index]),
            precision=float(precision[index]) if present[index] else None,
            recall=float(recall[index]) if present[index] else None,
            f1=float(f1[index]) if present[index] else None,
        )
        for index, name in enumerate(classes)
    ]
    means = (float(values[present].mean()) for values in (precision, recall, f1))
    return rows, Averages(**dict(zip(("precision", "recall", "f1"), means, strict=True)))
