"""Metrics of predictions, their confidence intervals, and tests whether one model is better than another."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.evaluation.predictions import Predictions
from transfer.training.history import SMALLEST_PROBABILITY

_RESAMPLES = 10_000


def mcnemar(gained: int, lost: int) -> float:
    """One-sided p-value of McNemar's exact test that the challenger is better.

    `gained`: number of images that only the challenger predicts correctly; `lost`: that only the champion does. Other
    images do not matter. If both models were equally good, `gained` would be binomial with `gained + lost` trials and
    probability 1/2; the p-value is the probability of at least `gained`. It is 1 if both numbers are 0.

    McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
    """
    # Imported late, because reading a summary does not need it. scipy.stats.binom calls this function, and takes half a
    # second more to import.
    from scipy.special import bdtrc

    return float(bdtrc(gained - 1, gained + lost, 0.5))


def bootstrap_interval(differences: np.ndarray, *, confidence: float, seed: int) -> Interval:
    """Interval of the mean difference between two models on the same images, by the paired percentile bootstrap.

    `differences`: int8 [n], n above 0: 1 if only the challenger is right, -1 if only the champion is, else 0.
    `confidence`: one-sided, for each end. The images are resampled with replacement 10,000 times. Only three values
    occur, so their counts in a resample are drawn from a multinomial distribution, for any number of images.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    images = len(differences)
    shares = np.array([np.sum(differences < 0), np.sum(differences == 0), np.sum(differences > 0)]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=_RESAMPLES)
    means = (drawn[:, 2] - drawn[:, 0]) / images
    low, high = np.quantile(means, [1 - confidence, confidence])
    return Interval(low=float(low), high=float(high))


_TOP_K = (3, 5)
_CONFIDENCE = 0.95
# Largest number of mistakes of one pair of classes among the worst, as long as there are mistakes of other pairs.
_MOST_ALIKE = 6


class Figures(BaseModel):
    """Base of stored results: immutable, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Interval(Figures):
    """A 95 % confidence interval."""

    low: float
    high: float


class Averages(Figures):
    """Macro averages: unweighted means over the classes with images in the split."""

    precision: float
    recall: float
    f1: float


class ClassMetrics(Figures):
    """Metrics of one class. Precision, recall and F1 are None for a class without images in the split."""

    name: str
    support: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


class Metrics(Figures):
    """All figures of one split.

    `loss`: mean cross-entropy in nats. `top_k`: share of images whose true class is among the k most probable, for k =
    3 and 5 if there are more than k classes. `per_class`: by class index. `confusion`: number of images
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

    @property
    def right(self) -> int:
        """Number of correct predictions."""
        return sum(row[index] for index, row in enumerate(self.confusion))

    @property
    def commonest_class(self) -> ClassMetrics:
        """The class with the most images; in a tie the first one."""
        return max(self.per_class, key=lambda row: row.support)

    @property
    def commonest_class_accuracy(self) -> float:
        """Accuracy of always predicting the commonest class of the split."""
        return self.commonest_class.support / self.images


class Mistake(Figures):
    """An image with a wrong prediction."""

    key: str
    truth: str
    truth_probability: float
    predicted: str
    predicted_probability: float


def compute_metrics(predictions: Predictions) -> Metrics:
    """Compute all metrics of the report from the predictions of one split."""
    labels, classes = predictions.labels, predictions.classes
    of_truth = np.take_along_axis(predictions.probabilities, labels[:, None], axis=1)[:, 0].astype(np.float64)
    ranks = _ranks_of_truth(predictions)
    correct = int(np.sum(ranks == 0))
    confusion = _confusion(predictions)
    per_class, macro = _class_metrics(classes, confusion)
    return Metrics(
        images=len(labels),
        loss=float(-np.log(np.clip(of_truth, SMALLEST_PROBABILITY, 1.0)).mean()) + 0.0,  # + 0.0: never -0.0
        accuracy=correct / len(labels),
        accuracy_interval=wilson_interval(correct, len(labels)),
        top_k={k: float(np.mean(ranks < k)) for k in _TOP_K if len(classes) > k},
        macro=macro,
        per_class=per_class,
        confusion=confusion.tolist(),
    )


def beats_commonest_class(metrics: Metrics) -> bool:
    """Whether the accuracy is above that of always predicting the commonest class of the split.

    The accuracies are compared, not the interval, which on few images would also fail networks that have learned.
    """
    return metrics.accuracy > metrics.commonest_class_accuracy


def wilson_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share (1927) at 95 %. It stays within 0 to 1 and is reliable for few trials."""
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = successes / trials
    center = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    margin = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # If all trials fail or succeed, the end is exact; rounding would give 0.9999999999999999.
    return Interval(
        low=0.0 if successes == 0 else float(center - margin),
        high=1.0 if successes == trials else float(center + margin),
    )


def worst_mistakes(predictions: Predictions, count: int) -> list[Mistake]:
    """Return `count` confident mistakes, the most confident first.

    At most 6 have the same true and predicted class, unless there are too few others. Ties are broken by the lower
    probability of the truth, then by key, so the order is deterministic.
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
    mistakes.sort(key=_surest_first)
    seen: Counter[tuple[str, str]] = Counter()
    first: list[Mistake] = []
    others: list[Mistake] = []
    for mistake in mistakes:
        pair = mistake.truth, mistake.predicted
        seen[pair] += 1
        (first if seen[pair] <= _MOST_ALIKE else others).append(mistake)
    return sorted([*first, *others][:count], key=_surest_first)


def _surest_first(mistake: Mistake) -> tuple[float, float, str]:
    return -mistake.predicted_probability, mistake.truth_probability, mistake.key


def _ranks_of_truth(predictions: Predictions) -> np.ndarray:
    """Rank of the true class, int [n]: 0 if the prediction is correct.

    Among equal probabilities the lower index is first, as for `argmax`. scikit-learn's top-k puts the higher index
    first, so a correct prediction might not count among the first three. A class with probability 0 is ranked last,
    because the model did not predict it at all.
    """
    probabilities, labels = predictions.probabilities, predictions.labels[:, None]
    of_truth = np.take_along_axis(probabilities, labels, axis=1)
    equal_and_before = (probabilities == of_truth) & (np.arange(probabilities.shape[1]) < labels)
    ranks: np.ndarray = np.sum((probabilities > of_truth) | equal_and_before, axis=1)
    ranks[of_truth[:, 0] == 0] = probabilities.shape[1]
    return ranks


def _confusion(predictions: Predictions) -> np.ndarray:
    """Images by true class (row) and predicted class (column), int64 [classes, classes]."""
    # The import of scikit-learn would take longer than the rest of an evaluation; a test compares the results.
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
