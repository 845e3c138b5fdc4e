"""Classification by the nearest training images, a block of queries at a time."""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 5
_BLOCK_ROWS = 512


def nearest_neighbours(features: np.ndarray, labels: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """The commonest class among the 5 most similar training images of each query, int64 [m].

    `features`: float [n, d], `labels`: int [n], of the training images. `queries`: float [m, d]; None: each training
    image is a query to all others. Similar is a small angle. Among classes with equally many of the 5, that of the
    nearest image counts.
    """
    count = int(labels.max()) + 1
    near = min(NEIGHBOURS, len(labels) - (queries is None))
    # A vote counts 1. The little more of each decides ties: that of the nearest image outweighs those of all others.
    votes = 1 + 0.5 ** np.arange(2, near + 2)
    known = _unit(features)
    predicted = []
    asked = known if queries is None else _unit(queries)
    for start in range(0, len(asked), _BLOCK_ROWS):
        similarity = asked[start : start + _BLOCK_ROWS] @ known.T
        if queries is None:
            own = np.arange(len(similarity))
            similarity[own, start + own] = -np.inf
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :near]
        scores = np.zeros((len(nearest), count))
        for place in range(near):
            scores[np.arange(len(nearest)), labels[nearest[:, place]]] += votes[place]
        predicted.append(scores.argmax(axis=1))
    return np.concatenate(predicted)


def _unit(rows: np.ndarray) -> np.ndarray:
    values = np.asarray(rows, np.float32)
    scaled: np.ndarray = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scaled
