"""What a number of held-out images can show, for docs/little_data.md: intervals, and how often a night's gate promotes.

python -m scripts.tables.held_out    # print the tables; `make docs` writes them into the page
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import binom, norm

from scripts.tables import markdown
from transfer.evaluation.metrics import wilson_interval
from transfer.runtime.numbers import percent

CONFIDENCE = 0.95
"""`nightly.gate.confidence` by default."""
IMAGES = (50, 100, 200, 500, 1_000, 2_000, 5_000)
POINTS = (0.01, 0.02, 0.05)
DIFFERING = (0.06, 0.12)
"""Shares of the images that exactly one of both models has right."""


def intervals() -> str:
    """95 % Wilson intervals of an accuracy."""
    accuracies = (0.7, 0.8, 0.9, 0.95)
    rows = []
    for images in (20, 100, 500, 2_000):
        found = [wilson_interval(round(accuracy * images), images) for accuracy in accuracies]
        rows.append([f"{images:,}", *(f"{percent(each.low)} to {percent(each.high)}" for each in found)])
    return markdown(["held-out images", *(f"{100 * accuracy:g} % right" for accuracy in accuracies)], rows)


def better(images: int, *, difference: float, differing: float, confidence: float = CONFIDENCE) -> float:
    """How often a truly better challenger passes `require: better`: the exact power of McNemar's one-sided exact test.

    `difference`: by how much its accuracy is higher. `differing`: share of images that exactly one of both has right.
    """
    counts = np.arange(images + 1)
    # Of so many differing images it must gain at least so many; see `transfer.evaluation.metrics.mcnemar`.
    fewest = binom.isf(round(1 - confidence, 12), counts, 0.5) + 1
    passes = binom.sf(fewest - 1, counts, (1 + difference / differing) / 2)
    return float(binom.pmf(counts, images, differing) @ passes)


def not_worse(images: int, *, margin: float, differing: float, confidence: float = CONFIDENCE) -> float:
    """How often an equally good challenger passes `require: not_worse`.

    By the normal approximation, of the difference that is found as well as of the bootstrap's interval around it.
    """
    deviation = np.sqrt(differing / images)
    return float(norm.cdf(margin / deviation - norm.ppf(confidence)))


def promotions_of_the_better() -> str:
    """How often `require: better` promotes, by how much better the challenger is."""
    columns = [f"{100 * points:g} point{'s' if points > 0.01 else ''} better" for points in POINTS]
    rows = [[f"{images:,}", *(_both(better, images, difference=points) for points in POINTS)] for images in IMAGES]
    return markdown(["held-out images", *columns], rows)


def promotions_of_equals() -> str:
    """How often `require: not_worse` promotes a challenger that is as good as the champion, by margin."""
    rows = [[f"{images:,}", *(_both(not_worse, images, margin=margin) for margin in POINTS)] for images in IMAGES]
    return markdown(["held-out images", *(f"`margin: {margin:g}`" for margin in POINTS)], rows)


def _both(power: Callable[..., float], images: int, **case: float) -> str:
    return ", ".join(percent(power(images, differing=share, **case), 0) for share in DIFFERING)


TABLES = {"intervals": intervals, "better": promotions_of_the_better, "not_worse": promotions_of_equals}

if __name__ == "__main__":
    for table in TABLES.values():
        print(table())
