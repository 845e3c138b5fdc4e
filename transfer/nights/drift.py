"""Drift of new images: a classifier two-sample test on their features.

A classifier is trained to distinguish new from earlier images. If it is no better than chance on held-out images, it
found no difference (Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests", 2017,
https://arxiv.org/abs/1610.06545). The measure is the area under the ROC curve, which does not depend on the numbers of
new and earlier images.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from transfer.dataset.manifest import Shard

MAX_SHARDS = 64
"""Largest number of shards that are opened for a sample, because opening one may mean fetching it."""


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Some rows of a shard. `rows`: int64 [n], ascending."""

    shard: Shard
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def sample(groups: Iterable[ShardRows], most: int) -> list[ShardRows]:
    """Sample at most `most` of these rows, from at most 64 shards (`MAX_SHARDS`). Shards without rows are left out.

    The sample depends on digests only: shards are chosen by their digests, and the first rows of each are taken, which
    are sorted by the digests of their images. So class, name and age have no influence. The share of sampled rows is
    the same in each shard.
    """
    shards = sorted((rows for rows in groups if len(rows)), key=lambda rows: rows.shard.sha256)[:MAX_SHARDS]
    ends = np.cumsum([len(rows) for rows in shards], dtype=np.int64)
    if not len(ends) or ends[-1] <= most:
        return shards
    counts = np.diff(ends * most // ends[-1], prepend=0)
    chosen = [ShardRows(rows.shard, rows.rows[:count]) for rows, count in zip(shards, counts, strict=True)]
    return [rows for rows in chosen if len(rows)]


SAMPLE_IMAGES = 2000
"""Largest sample of new and of earlier images; larger ones hardly change the area and take longer."""
FEWEST_IMAGES = 10
"""Smallest number of new and of earlier images; with fewer, the area means nothing."""
_FOLDS = 5
_MAX_DIMENSIONS = 64
_MAX_WEIGHT = 10.0
"""Largest weight of an earlier image, in multiples of the mean weight."""


def drift(
    before: np.ndarray, new: np.ndarray, *, labels_before: np.ndarray, labels_new: np.ndarray, seed: int
) -> float | None:
    """Area under the ROC curve of a classifier of new against earlier images; 0.5 if it cannot distinguish them.

    `before` [n, d] and `new` [m, d]: features of at most 2000 images (`SAMPLE_IMAGES`) each. `labels_before` and
    `labels_new`: their classes, int32 [n] and [m]. Other shares of the classes are no drift: earlier images are
    weighted to the class shares of the new ones, and classes that only one side has are left out. Returns None if less
    than 10 images (`FEWEST_IMAGES`) of a side remain.

    The area is the mean over held-out folds of a logistic regression, so that overfitting to few images does not count
    as drift. `seed` decides the folds.
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
    # Both sides get the same total weight: the number of images of the smaller side.
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
    """Weight of each earlier image, float64 [n]: the weighted class shares equal those of the new images."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    _, counts_new = np.unique(labels_new, return_counts=True)
    weights = (counts_new / counts)[index]
    # A class with very few earlier images must not depend on those alone.
    limited: np.ndarray = np.minimum(weights, _MAX_WEIGHT * weights.mean())
    return limited


def _folds(labels: np.ndarray, is_new: np.ndarray, seed: int) -> np.ndarray:
    """The fold of each image, int64 [n], stratified by class and side.

    Without stratification, a class that is over-represented in one fold is under-represented in training; with few
    images the area then falls below 0.5.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = np.lexsort((shuffled, labels, is_new))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % _FOLDS
    return fold


def _reduced(features: np.ndarray, seed: int) -> np.ndarray:
    """Standardised features, float [n, d], reduced to their first `_MAX_DIMENSIONS` principal components."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    reduced: np.ndarray = StandardScaler().fit_transform(features)
    dimensions = min(_MAX_DIMENSIONS, *features.shape)
    if dimensions < features.shape[1]:
        # PCA does not use the sides, so it need not be fitted in each fold.
        reduced = PCA(dimensions, random_state=seed).fit_transform(reduced)
    return reduced
