"""The most confident mistakes of a model, found part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from transfer.evaluation.metrics import Figures
from transfer.evaluation.predictions import Predictions

# Largest number of mistakes of one pair of classes among the worst, as long as there are mistakes of other pairs.
_MOST_ALIKE = 6


class Mistake(Figures):
    """An image with a wrong prediction. `sha256`: of the image; empty in reports of earlier releases."""

    key: str
    sha256: str = ""
    truth: str
    truth_probability: float
    predicted: str
    predicted_probability: float


def worst_mistakes(predictions: Predictions, count: int, *, digests: list[str]) -> list[Mistake]:
    """The `count` worst mistakes among predictions for the images with these digests, as `worst_of` chooses them."""
    predicted = predictions.predicted
    rows = np.flatnonzero(predicted != predictions.labels)
    return worst_of(
        (
            Mistake(
                key=predictions.keys[row],
                sha256=digests[row],
                truth=predictions.classes[predictions.labels[row]],
                truth_probability=float(predictions.probabilities[row, predictions.labels[row]]),
                predicted=predictions.classes[predicted[row]],
                predicted_probability=float(predictions.probabilities[row, predicted[row]]),
            )
            for row in rows
        ),
        count,
    )


def worst_of(mistakes: Iterable[Mistake], count: int) -> list[Mistake]:
    """Choose `count` confident mistakes, the most confident first.

    At most 6 have the same true and predicted class, unless there are too few others. Ties are broken by the lower
    probability of the truth, then by key and digest, so the order is deterministic. The worst of some parts together
    are the worst of the whole: chosen from those that were chosen in each part, they are the same as if chosen from
    all.
    """
    seen: Counter[tuple[str, str]] = Counter()
    first: list[Mistake] = []
    others: list[Mistake] = []
    for mistake in sorted(mistakes, key=_surest_first):
        pair = mistake.truth, mistake.predicted
        seen[pair] += 1
        (first if seen[pair] <= _MOST_ALIKE else others).append(mistake)
    return sorted([*first, *others][:count], key=_surest_first)


def _surest_first(mistake: Mistake) -> tuple[float, float, str, str]:
    return -mistake.predicted_probability, mistake.truth_probability, mistake.key, mistake.sha256
