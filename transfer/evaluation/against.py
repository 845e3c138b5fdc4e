"""Comparison of a run with the version that serves, on the same held-out images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from transfer.evaluation.metrics import Figures, mcnemar
from transfer.evaluation.predictions import Predictions
from transfer.runtime.numbers import p_text, percent

_NAMED = 5


@dataclass(frozen=True, eq=False)
class SameImages:
    """Predictions of the version that serves for the images on which a run is evaluated.

    `comparable`: bool [n], False for images that the version may have been trained on. `unknown`: classes that the
    version does not know.
    """

    predictions: Predictions
    comparable: np.ndarray
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ServingAnswers:
    """The version that serves: its predictions, and its accuracy on `split` of `dataset` by the report of its own run.

    `answers`: predictions for the images of the evaluated run, or the reason why there are none, as a clause.
    """

    version: int
    dataset: str
    split: str
    accuracy: float
    answers: SameImages | str


class AgainstServing(Figures):
    """The version that served when a run was evaluated.

    `accuracy`: accuracy of the version on `split` of `dataset`. If both were compared on the same images of that split,
    `images` is their number and `run_accuracy` the accuracy of the run on them. `gained`, `lost`: numbers of images
    that only the run, or only the version, predicts correctly. `p_value`: one-sided exact McNemar test that the run is
    better. `left_out`: number of images that the version may have been trained on. `unknown`: classes that the version
    does not know. Without a comparison these are None or empty, and `why_not` has the reason. Reports of earlier
    releases have neither `images` nor `run_accuracy`.
    """

    version: int
    dataset: str
    split: str
    accuracy: float
    images: int | None = None
    run_accuracy: float | None = None
    gained: int | None = None
    lost: int | None = None
    p_value: float | None = None
    left_out: int = 0
    unknown: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def text(self) -> str:
        """The comparison in sentences."""
        here = f"Version {self.version} served when this run was evaluated, with accuracy {percent(self.accuracy)}"
        if self.gained is None or self.p_value is None:
            why = f": {self.why_not}" if self.why_not else ""
            return f"{here} on {self.split} of {self.dataset}. The two are not compared on the same images{why}."
        beside = f" (this run: {percent(self.run_accuracy)})" if self.run_accuracy is not None else ""
        text = (
            f"{here} on the same images{beside}: {self.gained:,} only this run has right, {self.lost:,} only version "
            f"{self.version} ({p_text(self.p_value)} by McNemar's exact test, one-sided)."
        )
        if self.left_out:
            text += f" {self.left_out:,} more are left out, since version {self.version} may have been trained on them."
        if self.unknown:
            named = ", ".join(self.unknown[:_NAMED]) + (", …" if len(self.unknown) > _NAMED else "")
            text += f" Classes that are new to it, and whose images it has wrong: {named}."
        return text


def compare_with_serving(predictions: Predictions, dataset: str, split: str, serving: ServingAnswers) -> AgainstServing:
    """Compare a run's predictions on a split of a dataset version with those of the version that serves."""
    if isinstance(serving.answers, str):
        return AgainstServing(
            version=serving.version,
            dataset=serving.dataset,
            split=serving.split,
            accuracy=serving.accuracy,
            why_not=serving.answers,
        )
    rows, labels = serving.answers.comparable, predictions.labels
    ours = (predictions.predicted == labels)[rows]
    theirs = (serving.answers.predictions.predicted == labels)[rows]
    gained, lost = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    return AgainstServing(
        version=serving.version,
        dataset=dataset,
        split=split,
        accuracy=float(theirs.mean()),
        images=len(ours),
        run_accuracy=float(ours.mean()),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost),
        left_out=int(np.sum(~rows)),
        unknown=serving.answers.unknown,
    )
