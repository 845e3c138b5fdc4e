"""The `nightly` section: checks of new data, and the gate for new models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from transfer.config.section import Decides, Fraction, PositiveFloat, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Action = Literal["off", "warn", "refuse"]


class CheckConfig(Section, decides=Decides.OUTPUT):
    """A check of new data: its limit, and the action above the limit. A plain action is short for `{action: …}`."""

    action: Action
    """`warn`: the night continues, and its report has a warning. `refuse`: the night ends before training."""
    limit: Annotated[float, Field(ge=0.0)]
    """The action is taken above this value."""

    @model_validator(mode="before")
    @classmethod
    def _from_action(cls, value: object) -> object:
        return {"action": value} if isinstance(value, str) else value


class VolumeCheck(CheckConfig):
    """Images of the champion's dataset that are gone."""

    action: Action = "refuse"
    """What happens beyond the limit."""
    limit: Share = 0.2
    """Largest share of the images that may be gone."""


class VanishedCheck(CheckConfig):
    """Classes that lost all of their images. Their indices do not change."""

    action: Action = "refuse"
    """What happens beyond the limit."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Largest number of classes that may vanish."""


class FloodCheck(CheckConfig):
    """One class that makes up most of the new images."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.8
    """Largest share of one class among the new images. A class that was above it before does not count."""


class RejectsCheck(CheckConfig):
    """Images that ingest refused. Above `dataset.max_reject_share` the ingest itself fails."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.005
    """Largest share of all images that may be refused."""


class LabelShiftCheck(CheckConfig):
    """A change in the class distribution from the earlier images to the new ones."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.3
    """Largest total variation distance between the two class distributions."""


class DriftCheck(CheckConfig):
    """A change in the appearance of images: a classifier two-sample test (Lopez-Paz and Oquab, 2017).

    A classifier is trained to distinguish new images from earlier ones by the base's features.
    """

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.8
    """Largest area under the ROC curve of the classifier; 0.5 means that it cannot distinguish them."""


class AgreementCheck(CheckConfig):
    """New images whose labels the champion does not predict: the labels are wrong, or the images are of a new kind."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.25
    """Largest drop of the champion's accuracy from held-out images to new ones."""


class ChecksConfig(Section, decides=Decides.OUTPUT):
    """Checks of the data before a night trains. They compare with the dataset that the champion was trained on."""

    min_new_images: Annotated[int, Field(ge=1)] = 20
    """With fewer new images, the checks that compare distributions or features are skipped."""
    volume: VolumeCheck = VolumeCheck()
    vanished: VanishedCheck = VanishedCheck()
    flood: FloodCheck = FloodCheck()
    rejects: RejectsCheck = RejectsCheck()
    label_shift: LabelShiftCheck = LabelShiftCheck()
    drift: DriftCheck = DriftCheck()
    agreement: AgreementCheck = AgreementCheck()


class GateConfig(Section, decides=Decides.OUTPUT):
    """Requirements for a challenger to replace the champion, measured on images that neither model was trained on."""

    require: Literal["better", "not_worse"] = "better"
    """`better`: the challenger's accuracy is at least `margin` higher, and significant in a one-sided exact McNemar
    test (1947) at `confidence`. `not_worse`: the lower end of the paired bootstrap interval (Efron and Tibshirani,
    1993) of the difference is not below minus `margin`, because training on newer data is then a sufficient reason."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the test and of each end of the interval, one-sided."""
    margin: Fraction = 0.0
    """Difference in accuracy; see `require`."""
    min_images: Annotated[int, Field(ge=1)] = 30
    """With fewer held-out images no champion is replaced."""
    min_accuracy: Share | None = None
    """Smallest accuracy. Default: no limit."""
    min_class_recall: Share | None = None
    """Smallest recall of each class with at least `class_min_images` images. Default: no limit."""
    max_class_drop: Share | None = 0.2
    """Largest loss of recall of any class with at least `class_min_images` images. `null`: no limit."""
    class_min_images: Annotated[int, Field(ge=1)] = 10
    """Classes with fewer held-out images have no limits of their own."""
    max_latency_ratio: PositiveFloat | None = 1.5
    """Longest time for one image, as a multiple of the champion's; both are measured in turns. `null`: no limit."""
    max_latency_ms: PositiveFloat | None = None
    """Longest time for one image, on the machine that runs the gate. Default: no limit."""
    max_size_ratio: PositiveFloat | None = 1.5
    """Largest size of the published files, as a multiple of the champion's. `null`: no limit."""
    max_size_bytes: Annotated[int, Field(ge=1)] | None = None
    """Largest size of the published files. Default: no limit."""
    first: Literal["promote", "hold"] = "promote"
    """Without a champion: `promote` a challenger within absolute limits, or `hold` it until somebody promotes it."""


class NightlyConfig(Section, decides=Decides.OUTPUT):
    """The scheduled job: ingest new data, check it, train a challenger, and promote it if it proves better."""

    warm_start: Literal["none", "champion"] = "none"
    """`champion`: the head begins with the serving model's weights, class by class; new classes get fresh weights."""
    checks: ChecksConfig = ChecksConfig()
    gate: GateConfig = GateConfig()
    keep_runs: Annotated[Annotated[int, Field(ge=1)] | None, Decides.PLACEMENT] = 14
    """Number of runs of nights that stay; older ones are removed at the end of a night. Runs in use also stay, such as
    those of published versions. `null`: no run is removed."""
    claim_expires_s: Annotated[PositiveFloat, Decides.PLACEMENT] = 900.0
    """Seconds without renewal after which the claim on a night expires, so that another job can resume the night."""
    webhook_env: str | None = None
    """Name of an environment variable with a URL, to which each night's main figures are sent as JSON. The URL itself
    is usually a secret, so it does not belong here. Default: nothing is sent."""

    @field_validator("webhook_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isidentifier():
            raise ValueError("webhook_env must be the name of an environment variable, not the URL itself")
        return value
