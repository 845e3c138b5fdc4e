"""LogME: the evidence of a Bayesian linear model of the classes given the features, without training anything.

You, Liu, Wang and Long, LogME: Practical Assessment of Pre-trained Models for Transfer Learning, 2021
(https://arxiv.org/abs/2102.11005). For each class, y = F w + noise with w ~ N(0, 1 / alpha) and noise ~ N(0, 1 / beta).
The log evidence is maximised over alpha and beta by the fixed point of its equations (MacKay, 1992), and divided by the
number of images. LogME is its mean over the classes: higher is better, and only differences mean something.
"""

from __future__ import annotations

import numpy as np

_MOST_ROUNDS = 100
_TOLERANCE = 1e-6
_SMALLEST = 1e-12


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """LogME of features float [n, d] for labels int [n]."""
    values = np.asarray(features, np.float64)
    targets = np.eye(int(labels.max()) + 1)[labels][:, np.unique(labels)]
    squares, vectors = np.linalg.eigh(values @ values.T if len(values) <= values.shape[1] else values.T @ values)
    squares = np.maximum(squares, 0.0)
    if len(values) > values.shape[1]:
        vectors = values @ (vectors / np.sqrt(np.maximum(squares, _SMALLEST)))
    projected = np.square(vectors.T @ targets)
    evidences = [
        evidence(
            squares, along, rest=max(float(np.sum(target) - np.sum(along)), 0.0), rows=len(values), size=values.shape[1]
        )
        for along, target in zip(projected.T, targets.T, strict=True)
    ]
    return float(np.mean(evidences)) / len(values)


def evidence(squares: np.ndarray, along: np.ndarray, *, rest: float, rows: int, size: int) -> float:
    """The largest log evidence of one class.

    `squares`: squared singular values of the features [r]. `along`: squared length of the target along each left
    singular vector [r]; `rest`: what is left of it outside of all of them. `rows`, `size`: shape of the features.
    """
    alpha = beta = 1.0
    for _ in range(_MOST_ROUNDS):
        effective = float(np.sum(beta * squares / (alpha + beta * squares)))
        residual, length = _fit(squares, along, rest, alpha, beta)
        new = effective / max(length, _SMALLEST), (rows - effective) / max(residual, _SMALLEST)
        has_settled = abs(new[0] / alpha - 1) < _TOLERANCE and abs(new[1] / beta - 1) < _TOLERANCE
        alpha, beta = max(new[0], _SMALLEST), max(new[1], _SMALLEST)
        if has_settled:
            break
    return log_evidence(squares, along, alpha, beta, rest=rest, rows=rows, size=size)


def log_evidence(
    squares: np.ndarray, along: np.ndarray, alpha: float, beta: float, *, rest: float, rows: int, size: int
) -> float:
    """The log evidence of one class at given alpha and beta; see `evidence`."""
    residual, length = _fit(squares, along, rest, alpha, beta)
    log_determinant = float(np.sum(np.log(alpha + beta * squares))) + (size - len(squares)) * np.log(alpha)
    return float(
        0.5 * (rows * np.log(beta) + size * np.log(alpha) - rows * np.log(2 * np.pi))
        - 0.5 * (beta * residual + alpha * length + log_determinant)
    )


def _fit(squares: np.ndarray, along: np.ndarray, rest: float, alpha: float, beta: float) -> tuple[float, float]:
    """Squared residual of the best weights, and their squared length."""
    share = alpha / (alpha + beta * squares)
    residual = float(np.sum(along * share**2)) + rest
    return residual, float(np.sum(along * squares * (beta / (alpha + beta * squares)) ** 2))
