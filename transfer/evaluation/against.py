"""Comparison of a run with the version that serves, on the same held-out images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from transfer.evaluation.metrics import Figures, mcnemar
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.units import Unit, UnitImages
from transfer.runtime.numbers import p_text, percent
from transfer.storage import Store

_NAMED = 5


@dataclass(frozen=True, eq=False)
class SameImages:
    """Predictions of the version that serves for images on which a run is evaluated.

    `comparable`: bool [n], False for images that the version may have been trained on.
    """

    predictions: Predictions
    comparable: np.ndarray


class Asked(Protocol):
    """The version that serves, to be asked about images. It is pickled."""

    version: int
    needs_images: bool
    """Whether it is asked about the images themselves. Otherwise its predictions for them are stored."""

    def answers(self, store: Store, unit: Unit, images: UnitImages) -> SameImages:
        """Its predictions for the images of a unit. Raises whatever keeps it from answering."""


@dataclass(frozen=True)
class Reported:
    """The accuracy of a version on `split` of `dataset`, by the report of its own run."""

    dataset: str
    split: str
    accuracy: float


@dataclass(frozen=True, eq=False)
class ServingAnswers:
    """The version that serves, and what its own run's report says; None if it was not trained here.

    `asked`: what answers about the images of the evaluated run, or the reason why nothing does, as a clause. `unknown`:
    classes that the version does not know.
    """

    version: int
    reported: Reported | None
    asked: Asked | str
    unknown: tuple[str, ...] = ()


@dataclass
class Beside:
    """What is counted of a run and the version that serves on the same images. `+=` adds other images of the same two.

    `run_right`, `right`: images that the run, and that the version, predicts correctly; `gained`, `lost`: that only the
    run does, that only the version does. `left_out`: images that the version may have been trained on.
    """

    images: int = 0
    run_right: int = 0
    right: int = 0
    gained: int = 0
    lost: int = 0
    left_out: int = 0

    @classmethod
    def of(cls, predictions: Predictions, same: SameImages) -> Beside:
        """Count some images."""
        rows, labels = same.comparable, predictions.labels
        ours = (predictions.predicted == labels)[rows]
        theirs = (same.predictions.predicted == labels)[rows]
        return cls(
            images=len(ours),
            run_right=int(np.sum(ours)),
            right=int(np.sum(theirs)),
            gained=int(np.sum(ours & ~theirs)),
            lost=int(np.sum(theirs & ~ours)),
            left_out=int(np.sum(~rows)),
        )

    def __iadd__(self, other: Beside) -> Self:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


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


def compare_with_serving(
    found: Beside | str, dataset: str, split: str, serving: ServingAnswers
) -> AgainstServing | None:
    """What was counted on a split of a dataset version, or why nothing was, as a clause, in the words of a report.

    None if nothing was counted, and no report tells of the version either.
    """
    if isinstance(found, Beside) and not found.images:
        found = f"version {serving.version} may have been trained on all of them"
    if isinstance(found, str):
        if serving.reported is None:
            return None
        return AgainstServing(version=serving.version, **vars(serving.reported), why_not=found)
    return AgainstServing(
        version=serving.version,
        dataset=dataset,
        split=split,
        accuracy=found.right / found.images,
        images=found.images,
        run_accuracy=found.run_right / found.images,
        gained=found.gained,
        lost=found.lost,
        p_value=mcnemar(found.gained, found.lost),
        left_out=found.left_out,
        unknown=serving.unknown,
    )
