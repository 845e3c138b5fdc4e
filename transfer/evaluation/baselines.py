"""Simple answers to the same images, which a report compares its model with, and what follows in words."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field

from transfer.evaluation.metrics import Figures, Interval, Metrics, bootstrap_interval
from transfer.runtime.numbers import percent, points

BaselineName = Literal["commonest class", "nearest neighbours", "linear probe", "random network"]

TITLES: dict[str, str] = {
    "commonest class": "always answering the commonest class of the training images",
    "nearest neighbours": "the nearest training images by the same features",
    "linear probe": "a linear probe on the same features",
    "random network": "a linear probe on the same network with random weights",
}
_END = 0.975
"""Confidence of each end of a 95 % interval."""


class Baseline(Figures):
    """A simple answer, and the model's on the same images.

    `images`: number of evaluated images on which both answered. `right`, `run_right`: of them predicted correctly, by
    the baseline and by the model. `gained`, `lost`: that only the model predicts correctly, that only the baseline
    does. `interval`: 95 % paired bootstrap interval of the difference of the accuracies, model minus baseline.
    """

    name: BaselineName
    images: int
    right: int
    run_right: int
    gained: int
    lost: int
    interval: Interval

    @classmethod
    def of(cls, name: BaselineName, *, images: int, run_right: int, gained: int, lost: int) -> Self:
        """The baseline with these counts; of images there must be one or more."""
        interval = bootstrap_interval(gained, lost, images=images, confidence=_END, seed=0)
        right = run_right - gained + lost
        return cls(
            name=name, images=images, right=right, run_right=run_right, gained=gained, lost=lost, interval=interval
        )

    @classmethod
    def compared(cls, name: BaselineName, right: np.ndarray, run_right: np.ndarray) -> Self:
        """The baseline with these answers to the same images, bool [n] both: whether they are correct."""
        gained, lost = int(np.sum(run_right & ~right)), int(np.sum(right & ~run_right))
        return cls.of(name, images=len(right), run_right=int(np.sum(run_right)), gained=gained, lost=lost)

    @property
    def title(self) -> str:
        """What answers, in words."""
        return TITLES[self.name]

    @property
    def accuracy(self) -> float:
        """Accuracy of the baseline, from 0 to 1."""
        return self.right / self.images

    @property
    def run_accuracy(self) -> float:
        """Accuracy of the model on the same images."""
        return self.run_right / self.images

    @property
    def difference(self) -> float:
        """Accuracy of the model minus that of the baseline."""
        # The difference of two rounded shares can be below 0.03 although 3 more of 100 images are correct.
        return (self.gained - self.lost) / self.images

    @property
    def difference_text(self) -> str:
        """The difference with its interval: `+12.0 points (9.1 to 15.2)`."""
        return f"{points(self.difference)} ({_in_points(self.interval.low)} to {_in_points(self.interval.high)})"


class Baselines(Figures):
    """The baselines of a report.

    `training_images`: number of training images that a baseline from features knows, by its name. `not_made`: why a
    baseline is missing, as a clause. `transfer`: the random network beside the linear probe on the pretrained one,
    which stands in place of the model: what the pretrained weights gain, without what training adds. None without both.
    """

    made: tuple[Baseline, ...]
    transfer: Baseline | None = None
    training_images: dict[BaselineName, int] = Field(default_factory=dict)
    not_made: dict[BaselineName, str] = Field(default_factory=dict)

    @property
    def best_probe(self) -> Baseline | None:
        """The better one of nearest neighbours and the linear probe on the pretrained features."""
        probes = [each for each in self.made if each.name in ("nearest neighbours", "linear probe")]
        return max(probes, key=lambda each: each.right / each.images, default=None)

    @property
    def verdict(self) -> str:
        """What the comparison says, in sentences: whether transfer helps, and what training gains over a probe."""
        transfer, probe = self.transfer, self.best_probe
        return " ".join([*([_of_transfer(transfer)] if transfer else []), *([_of_training(probe)] if probe else [])])


def commonest_class_baseline(metrics: Metrics, training_counts: dict[str, int]) -> Baseline:
    """Always answering the commonest class of the training images, on all evaluated images."""
    names = [row.name for row in metrics.per_class]
    commonest = max(range(len(names)), key=lambda index: training_counts.get(names[index], 0))
    of_it, right_of_it = metrics.per_class[commonest].support, metrics.confusion[commonest][commonest]
    return Baseline.of(
        "commonest class",
        images=metrics.images,
        run_right=metrics.right,
        gained=metrics.right - right_of_it,
        lost=of_it - right_of_it,
    )


def _of_transfer(random: Baseline) -> str:
    beside = (
        f"of {random.images:,} images, a linear probe has {percent(random.run_accuracy)} right with the pretrained "
        f"weights and {percent(random.accuracy)} with random ones"
    )
    if random.interval.low > 0:
        return f"Transfer gains {random.difference_text.removeprefix('+')}: {beside}."
    if random.interval.high < 0:
        return f"Negative transfer, {random.difference_text}: {beside}."
    return f"{random.images:,} images do not show whether transfer helps, {random.difference_text}: {beside}."


def _of_training(probe: Baseline) -> str:
    images = f", on {probe.images:,} of the images"
    if probe.interval.low > 0:
        return f"Training gains {probe.difference_text.removeprefix('+')} over {probe.title}{images}."
    if probe.interval.high < 0:
        return (
            f"The model is worse than {probe.title}, {probe.difference_text}{images}: other learning rates or more "
            "epochs may help."
        )
    return f"The model is about as good as {probe.title}, {probe.difference_text}{images}."


def _in_points(difference: float) -> str:
    return f"{round(100 * difference, 1) + 0.0:.1f}"
