"""Metrics of predictions, their confidence intervals, and tests whether one model is better than another.

Metrics are computed from a `Tally`, which is counted part by part: the sum of the tallies of some parts is exactly the
tally of all their images, whichever way they were divided.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Self

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


def bootstrap_interval(gained: int, lost: int, *, images: int, confidence: float, seed: int) -> Interval:
    """Interval of the mean difference between two models on the same images, by the paired percentile bootstrap.

    `gained`, `lost`: numbers of images that only the challenger, or only the champion, predicts correctly, of `images`,
    which is above 0. `confidence`: one-sided, for each end. The images are resampled with replacement 10,000 times.
    The difference of an image is 1, -1 or 0, so the counts of these in a resample are drawn from a multinomial
    distribution, for any number of images.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    shares = np.array([lost, images - gained - lost, gained]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=_RESAMPLES)
    means = (drawn[:, 2] - drawn[:, 0]) / images
    low, high = np.quantile(means, [1 - confidence, confidence])
    return Interval(low=float(low), high=float(high))


_TOP_K = (3, 5)
_CONFIDENCE = 0.95
_LOSS_BITS = 80


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


@dataclass
class Tally:
    """What the metrics of some images are computed from. `+=` adds the images of another tally of the same classes.

    `losses`: sum of the cross-entropies in units of 2^-80 nats. The logarithm of a probability in float32 is a whole
    number of these, so the sum is exact, and the same in whatever order it is formed. `within`: by k, the number of
    images whose true class is among the k most probable. `pairs`: number of images by true and predicted class.
    """

    classes: list[str]
    images: int = 0
    losses: int = 0
    within: Counter[int] = field(default_factory=Counter)
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)

    @classmethod
    def of(cls, predictions: Predictions) -> Tally:
        """Count some images."""
        labels, count = predictions.labels, len(predictions.classes)
        of_truth = np.take_along_axis(predictions.probabilities, labels[:, None], axis=1)[:, 0].astype(np.float64)
        losses = np.abs(np.log(np.clip(of_truth, SMALLEST_PROBABILITY, 1.0)))
        ranks = _ranks_of_truth(predictions)
        codes, images = np.unique(labels.astype(np.int64) * count + predictions.predicted, return_counts=True)
        return cls(
            predictions.classes,
            images=len(labels),
            losses=sum(map(int, np.ldexp(losses, _LOSS_BITS).tolist())),
            within=Counter({k: int(np.sum(ranks < k)) for k in _TOP_K}),
            pairs=Counter({divmod(code, count): n for code, n in zip(codes.tolist(), images.tolist(), strict=True)}),
        )

    def __iadd__(self, other: Tally) -> Self:
        self.images += other.images
        self.losses += other.losses
        self.within.update(other.within)
        self.pairs.update(other.pairs)
        return self

    @property
    def right(self) -> int:
        """Number of correct predictions."""
        return sum(images for (truth, predicted), images in self.pairs.items() if truth == predicted)

    def metrics(self) -> Metrics:
        """The metrics of the images, of which there must be one or more."""
        # The import of scikit-learn would take longer than the rest of an evaluation; a test compares the results.
        confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for pair, images in self.pairs.items():
            confusion[pair] = images
        per_class, macro = _class_metrics(self.classes, confusion)
        return Metrics(
            images=self.images,
            loss=self.losses / (self.images << _LOSS_BITS),
            accuracy=self.right / self.images,
            accuracy_interval=wilson_interval(self.right, self.images),
            top_k={k: self.within[k] / self.images for k in _TOP_K if len(self.classes) > k},
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
