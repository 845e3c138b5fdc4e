"""Is one model better than another on the same images, or was it luck?"""

from __future__ import annotations

import numpy as np

from transfer.evaluation.metrics import Interval

_RESAMPLES = 10_000


def mcnemar(gained: int, lost: int) -> float:
    """One-sided p-value of McNemar's test in its exact form, that the challenger is the better one.

    `gained`: images that only the challenger has right, `lost`: those that only the champion has right. Images on which
    both agree say nothing. Were both equally good, each of the others would fall to either side like a coin; the answer
    is how likely at least `gained` of them would fall to the challenger. Without any, 1.

    McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947.
    """
    # Late: it costs a second, which reading a summary need not pay.
    from scipy.stats import binom

    return float(binom.sf(gained - 1, gained + lost, 0.5))


def bootstrap_interval(differences: np.ndarray, *, confidence: float, seed: int) -> Interval:
    """Interval of the mean difference between two models on the same images, by the paired percentile bootstrap.

    `differences`: int8 [n], n above 0: 1 where only the challenger is right, -1 where only the champion is, else 0.
    `confidence`: one-sided, of each end by itself. Images are drawn anew with replacement, 10,000 times; as only three
    values occur, how often each is drawn is a multinomial, whatever the number of images.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    images = len(differences)
    shares = np.array([np.sum(differences < 0), np.sum(differences == 0), np.sum(differences > 0)]) / images
    drawn = np.random.default_rng(seed).multinomial(images, shares, size=_RESAMPLES)
    means = (drawn[:, 2] - drawn[:, 0]) / images
    low, high = np.quantile(means, [1 - confidence, confidence])
    return Interval(low=float(low), high=float(high))
