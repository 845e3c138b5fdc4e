"""Whether new images look different: a classifier two-sample test on their features.

If a classifier that was trained to tell new from earlier images does no better than chance on images that it was not
trained on, nothing it could see is different (Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", 2017,
https://arxiv.org/abs/1610.06545). Measured by the area under the ROC curve, which does not depend on how many there are
of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard

MAX_SHARDS = 64
"""That are opened for a sample: opening one may mean fetching it."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Some rows of a shard: int64 [n], ascending."""

    shard: Shard
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def sample(groups: Iterable[ShardRows], most: int) -> list[ShardRows]:
    """Of these rows `most`, or all of them if they are fewer, from `MAX_SHARDS` shards at most; none without rows.

    Digests decide: which shards, by their own, and which rows, since those of a shard are sorted by their images'. So
    class, name and age have no part in it. Each shard gives the same share of its rows.
    """
    shards = sorted((rows for rows in groups if len(rows)), key=lambda rows: rows.shard.sha256)[:MAX_SHARDS]
    ends = np.cumsum([len(rows) for rows in shards], dtype=np.int64)
    if not len(ends) or ends[-1] <= most:
        return shards
    counts = np.diff(ends * most // ends[-1], prepend=0)
    chosen = [ShardRows(rows.shard, rows.rows[:count]) for rows, count in zip(shards, counts, strict=True)]
    return [rows for rows in chosen if len(rows)]


SAMPLE_IMAGES = 2000
"""Of each that are enough: more hardly change the area, and only take longer."""
FEWEST_IMAGES = 10
"""Of each, below which an area says nothing."""
_FOLDS = 5
_MAX_DIMENSIONS = 64
_MAX_WEIGHT = 10.0
"""Of an earlier image, in multiples of the mean."""


def drift(
    before: np.ndarray, new: np.ndarray, *, labels_before: np.ndarray, labels_new: np.ndarray, seed: int
) -> float | None:
    """How well new images can be told from earlier ones: the area under the ROC curve, 0.5 for not at all.

    `before` [n, d] and `new` [m, d]: features of at most `SAMPLE_IMAGES` each. `labels_before` and `labels_new`: int32
    [n], [m], their classes. That classes come in other shares is no drift: earlier images are weighted so that theirs
    are those of the new ones, and classes that only one side has are left out. None where less than `FEWEST_IMAGES` of
    a side remain.

    The area is the mean over folds that a logistic regression was not trained on, so few images do not look different
    by being learned by heart. `seed` decides the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    shared = np.intersect1d(labels_before, labels_new)
    of_before, of_new = np.isin(labels_before, shared), np.isin(labels_new, shared)
    if min(of_before.sum(), of_new.sum()) < FEWEST_IMAGES:
        return None
    features = _reduced(np.concatenate([before[of_before], new[of_new]]), seed)
    labels = np.concatenate([labels_before[of_before], labels_new[of_new]])
    is_new = np.repeat([0, 1], [of_before.sum(), of_new.sum()])
    weights = np.concatenate([_weights(labels_before[of_before], labels_new[of_new]), np.ones(of_new.sum())])
    # Both sides count the same, as much as the smaller one has images.
    for side in (0, 1):
        weights[is_new == side] *= np.bincount(is_new).min() / weights[is_new == side].sum()
    fold = _folds(labels, is_new, seed)
    areas = []
    for held_out in (fold == index for index in range(_FOLDS)):
        classifier = LogisticRegression(max_iter=1000)
        classifier.fit(features[~held_out], is_new[~held_out], sample_weight=weights[~held_out])
        scores = classifier.decision_function(features[held_out])
        areas.append(roc_auc_score(is_new[held_out], scores, sample_weight=weights[held_out]))
    return float(np.mean(areas))


def _weights(labels: np.ndarray, labels_new: np.ndarray) -> np.ndarray:
    """Of each earlier image, float64 [n], with which their classes come in the shares of the new ones."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    _, counts_new = np.unique(labels_new, return_counts=True)
    weights = (counts_new / counts)[index]
    # A class of which hardly an image was there before shall not be judged by that one alone.
    limited: np.ndarray = np.minimum(weights, _MAX_WEIGHT * weights.mean())
    return limited


def _folds(labels: np.ndarray, is_new: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image, int64 [n]: of each class and side all folds have equally many, give or take one.

    Else those that a fold has too many of, the others have too few of, and what is learned there is wrong here: areas
    of few images would be below 0.5.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = np.lexsort((shuffled, labels, is_new))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % _FOLDS
    return fold


def _reduced(features: np.ndarray, seed: int) -> np.ndarray:
    """Standardised features, float [n, d], in at most `_MAX_DIMENSIONS` directions: those in which they vary most."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    reduced: np.ndarray = StandardScaler().fit_transform(features)
    dimensions = min(_MAX_DIMENSIONS, *features.shape)
    if dimensions < features.shape[1]:
        # Which side an image is of has no part in it, so that it need not be done anew for each fold.
        reduced = PCA(dimensions, random_state=seed).fit_transform(reduced)
    return reduced
