"""A linear probe: ridge regression onto the classes, with leave-one-out in closed form.

Each class is a target of 1 for its images and 0 for the others. One decomposition of the features serves all penalties:
with X = U S V', the predictions are U S²/(S² + penalty) U' Y. The prediction for an image by all others follows from
the residual and the image's own weight h in it, (y - residual / (1 - h)), so nothing is fitted n times.

Allen, The relationship between variable selection and data augmentation and a method for prediction, 1974 (PRESS).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PENALTIES = tuple(10.0**power for power in range(-3, 4))
"""Times the number of images, since the features are standardised."""


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """A fitted probe.

    `classes`: int64 [c], those with training images. `mean`, `scale`: float64 [d]. `weights`: float64 [d, c].
    `offset`: float64 [c]. `penalty`: the one with the most images right in leave-one-out. `left_out`: int64 [n], the
    class of each training image by a probe of all others.
    """

    classes: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    penalty: float
    left_out: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The class of each row, int64 [m], of features float [m, d]."""
        scores = (np.asarray(features, np.float64) - self.mean) / self.scale @ self.weights + self.offset
        return np.asarray(self.classes[scores.argmax(axis=1)])


def fit_ridge(features: np.ndarray, labels: np.ndarray) -> RidgeProbe:
    """Fit a probe to training images: features float [n, d] and labels int [n].

    Features are standardised first. That uses the mean and deviation of all images, also of the one that is left out.
    """
    classes, targets = np.unique(labels, return_inverse=True)
    values = np.asarray(features, np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    # A feature that never changes tells nothing, and is 0 after centering.
    scale = np.where(deviation > 0, deviation, 1.0)
    centered = (values - mean) / scale
    wanted = np.eye(len(classes))[targets]
    offset = wanted.mean(axis=0)
    left, squares = _decomposed(centered)
    projected = left.T @ (wanted - offset)
    best: tuple[tuple[int, float], float, np.ndarray] | None = None
    for share in PENALTIES:
        penalty = share * len(labels)
        scores = left_out_scores(left, squares, wanted, penalty)
        answers = scores.argmax(axis=1)
        merit = int(np.sum(answers == targets)), -float(np.sum((scores - wanted) ** 2))
        if best is None or merit > best[0]:
            best = merit, penalty, answers
    assert best is not None  # noqa: S101 - there are penalties
    _, penalty, answers = best
    # X'(XX' + penalty)^-1 Y; what lies outside of the decomposition has no part in X.
    weights = centered.T @ (left @ (projected / (squares + penalty)[:, None]))
    return RidgeProbe(classes, mean, scale, weights, offset, penalty, np.asarray(classes[answers]))


def left_out_scores(left: np.ndarray, squares: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
    """Score of each class for each image by a ridge regression on all other images, float64 [n, c].

    `left`: float64 [n, r], left singular vectors of the centered features, and `squares` [r] their squared singular
    values. `wanted`: float64 [n, c]. The offset is fitted, too, and has no penalty.
    """
    shrunk = squares / (squares + penalty)
    offset = wanted.mean(axis=0)
    fitted = offset + left @ (shrunk[:, None] * (left.T @ (wanted - offset)))
    own = 1 / len(wanted) + np.einsum("nr,r,nr->n", left, shrunk, left)
    # An image with a weight of 1 is predicted by itself alone; others say nothing of it.
    left_out: np.ndarray = wanted - (wanted - fitted) / np.maximum(1 - own, 1e-12)[:, None]
    return left_out


def _decomposed(centered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors [n, r] and squared singular values [r], from the smaller of the two products."""
    is_wide = len(centered) <= centered.shape[1]
    squares, vectors = np.linalg.eigh(centered @ centered.T if is_wide else centered.T @ centered)
    # Centering takes one dimension, and equal images more: rounding leaves tiny values there.
    counts = squares > squares.max(initial=0.0) * len(squares) * np.finfo(np.float64).eps
    squares, vectors = squares[counts], vectors[:, counts]
    return (vectors if is_wide else centered @ (vectors / np.sqrt(squares))), squares
