"""The `nightly` section: what new data must look like, and what a new model must show before it serves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from transfer.config.section import Decides, Fraction, PositiveFloat, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Action = Literal["off", "warn", "refuse"]


class CheckConfig(Section, decides=Decides.OUTPUT):
    """A limit on what is new, and what happens beyond it. A plain action is short for `{action: …}`."""

    action: Action
    """`warn` goes on and says so in the report; `refuse` ends the night before training."""
    limit: Annotated[float, Field(ge=0.0)]
    """Beyond this the action is taken."""

    @model_validator(mode="before")
    @classmethod
    def _from_action(cls, value: object) -> object:
        return {"action": value} if isinstance(value, str) else value


class VolumeCheck(CheckConfig):
    """Images that are gone since the champion's dataset."""

    action: Action = "refuse"
    """What happens beyond the limit."""
    limit: Share = 0.2
    """Largest share of the images that may be gone."""


class VanishedCheck(CheckConfig):
    """Classes that had images and have none any more. They keep their index."""

    action: Action = "refuse"
    """What happens beyond the limit."""
    limit: Annotated[int, Field(ge=0)] = 0
    """Largest number of classes that may vanish."""


class FloodCheck(CheckConfig):
    """One class that makes up nearly all that is new."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.8
    """Largest share of the new images that one class may have, where its share was smaller before."""


class RejectsCheck(CheckConfig):
    """Images refused by ingest; `dataset.max_reject_share` fails it at once."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.005
    """Largest share of all images that may be refused."""


class LabelShiftCheck(CheckConfig):
    """New images whose classes are distributed differently from those of the earlier images."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.3
    """Largest total variation distance between the two distributions of classes."""


class DriftCheck(CheckConfig):
    """New images that look different: how well a classifier tells new images from earlier ones by the base's features.

    A classifier two-sample test (Lopez-Paz and Oquab, 2017).
    """

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.8
    """Largest area under the ROC curve. At 0.5 new and earlier images cannot be told apart."""


class AgreementCheck(CheckConfig):
    """Labels of new images that the champion contradicts: the labels are wrong, or the images are of a new kind."""

    action: Action = "warn"
    """What happens beyond the limit."""
    limit: Share = 0.25
    """Largest drop of the champion's accuracy from the held-out images to the new ones."""


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
    """What a challenger must show, on images that neither model was trained on, before it replaces the champion."""

    require: Literal["better", "not_worse"] = "better"
    """`better`: the challenger's accuracy is at least `margin` higher, and significant in a one-sided exact McNemar
    test (1947) at `confidence`. `not_worse`: the lower end of the paired bootstrap interval (Efron and Tibshirani,
    1993) of the difference is not below minus `margin`; fresh data is then reason enough to replace the champion."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence level of the test and of each end of the interval, one-sided."""
    margin: Fraction = 0.0
    """Difference in accuracy."""
    min_images: Annotated[int, Field(ge=1)] = 30
    """With fewer held-out images nothing is promoted over a champion."""
    min_accuracy: Share | None = None
    """Absolute floor. Default: none."""
    min_class_recall: Share | None = None
    """Absolute floor for the recall of each class with `class_min_images` images. Default: none."""
    max_class_drop: Share | None = 0.2
    """Largest loss of recall of any class with `class_min_images` images. `null`: no limit."""
    class_min_images: Annotated[int, Field(ge=1)] = 10
    """Classes with fewer held-out images are not judged alone."""
    max_latency_ratio: PositiveFloat | None = 1.5
    """Longest time for one image, in multiples of the champion's, both measured in turns. `null`: no limit."""
    max_latency_ms: PositiveFloat | None = None
    """Longest time for one image, on the machine that runs the gate. Default: no limit."""
    max_size_ratio: PositiveFloat | None = 1.5
    """Largest size of the published files, in multiples of the champion's. `null`: no limit."""
    max_size_bytes: Annotated[int, Field(ge=1)] | None = None
    """Largest size of the published files. Default: no limit."""
    first: Literal["promote", "hold"] = "promote"
    """Without a champion: `promote` what keeps the absolute floors and limits, or `hold` until somebody promotes it."""


class NightlyConfig(Section, decides=Decides.OUTPUT):
    """The scheduled job: ingest what is new, check it, train, and promote what is proven better."""

    warm_start: Literal["none", "champion"] = "none"
    """`champion`: the head begins with the serving model's weights, class by class; new classes begin afresh."""
    checks: ChecksConfig = ChecksConfig()
    gate: GateConfig = GateConfig()
    keep_runs: Annotated[Annotated[int, Field(ge=1)] | None, Decides.PLACEMENT] = 14
    """At the end of a night, older runs of nights are removed: so many of the newest stay, and all that are in use, as
    those of published versions are. `null`: none is removed."""
    claim_expires_s: Annotated[PositiveFloat, Decides.PLACEMENT] = 900.0
    """Seconds without a sign of life after which a night counts as dead, and another job may go on with it."""
    webhook_env: str | None = None
    """Name of an environment variable that holds a URL; each night's summary is sent there as JSON. Not the URL itself,
    which usually is a secret. Default: nothing is sent."""

    @field_validator("webhook_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.isidentifier():
            raise ValueError("webhook_env must be the name of an environment variable, not the URL itself")
        return value
