"""The result of a screen, as JSON and in words."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from transfer.evaluation.metrics import Figures, Interval

BACKWARD = 3.0
"""Cost of a training step beside that of a forward pass: the pass, and twice as much for the gradients."""


class ScreenedCut(Figures):
    """What the features of a network at a cut tell of the classes.

    `tap`: the layer that the features come from, None for the end of the network. `size`: numbers of an image's
    features. `right`: images of the sample that the linear probe has right, each by a probe of all others; `interval`:
    95 % interval of that accuracy (Wilson). `neighbours`: accuracy of the nearest neighbours, each image by all others.
    `logme`: LogME. `ms`: milliseconds of a forward pass for an image. `size_bytes`: of the weights up to the cut.
    """

    base: str
    tap: str | None
    size: int
    right: int
    accuracy: float
    interval: Interval
    neighbours: float
    logme: float
    ms: float
    size_bytes: int
    settings: tuple[str, ...]

    @property
    def title(self) -> str:
        """The network and the cut, in words."""
        return f"{self.base} up to {self.tap}" if self.tap else self.base


class FailedBase(Figures):
    """A network that cannot be had, and the reason."""

    base: str
    reason: str


class ScreenResult(Figures):
    """A screen of several networks on one dataset version.

    `images`: number of images of the sample, of the `training_images` of the training split. `all_images`: of all
    splits. `replicas`: processes or GPUs that compute at once. `cuts`: the best first.
    """

    name: str
    dataset: str
    images: int
    training_images: int
    all_images: int
    replicas: int
    cuts: tuple[ScreenedCut, ...]
    failed: tuple[FailedBase, ...]

    @property
    def best(self) -> ScreenedCut | None:
        """The cut whose linear probe is right most often."""
        return self.cuts[0] if self.cuts else None

    def extraction_s(self, cut: ScreenedCut) -> float:
        """Estimated seconds to compute the features of all images once."""
        return self.all_images * cut.ms / 1000 / self.replicas

    def epoch_s(self, cut: ScreenedCut) -> float:
        """Estimated seconds of an epoch in which all of the network is trained."""
        return self.training_images * cut.ms * BACKWARD / 1000 / self.replicas


class StoredScreen(BaseModel):
    """The entry of the log of a model's screens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    result: ScreenResult
    page: str
    """SHA-256 of the page."""
