"""The sections `phases` and `training`: how a model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from transfer.config.section import Fraction, PositiveFloat, Section


class ScheduleConfig(Section):
    """How the learning rate moves within a phase."""

    kind: Literal["constant", "cosine", "exponential"] = "constant"
    """`cosine` falls to `final_share` of the learning rate along half a cosine, `exponential` geometrically."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Rise linearly from zero over this many epochs first."""
    final_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Learning rate at the end of the phase, as a share of the peak."""


class OptimizerConfig(Section):
    """The optimiser. A plain string is short for `{name: …}`."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam, AdamW (decoupled weight decay), or SGD."""
    momentum: Fraction = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum for SGD."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.004
    """Decoupled weight decay of AdamW."""
    clip_norm: PositiveFloat | None = None
    """Scale gradients down so that their global norm, over all replicas, stays below this."""


class EarlyStoppingConfig(Section):
    """End a phase when validation stops improving, and go back to its best epoch."""

    metric: Literal["loss", "accuracy"] = "loss"
    """Validation metric that is watched."""
    patience_epochs: Annotated[int, Field(ge=1)] = 3
    """Epochs without improvement before stopping."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """Smaller changes do not count as improvement."""


class PhaseConfig(Section):
    """One stretch of training. Freeze, then unfreeze, is two."""

    unfreeze: int | str = 0
    """`0` trains the head only, `n` the last n blocks too, `all` everything, a layer's name from that layer up.
    `transfer inspect` lists the blocks."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the training split."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser of this phase; its state starts afresh."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate schedule of this phase."""
    early_stopping: EarlyStoppingConfig | None = None
    """Default: run all epochs and keep the last."""
    augment: bool = True
    """Whether the `augmentation` section applies in this phase."""

    @field_validator("optimizer", mode="before")
    @classmethod
    def _optimizer_from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("unfreeze")
    @classmethod
    def _unfreeze_not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError(f"unfreeze is {value} and must be 0 or more blocks, `all` or a layer's name")
        return value


class TrainingConfig(Section):
    """What all phases share."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a step over all workers and replicas; must be divisible by their number."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides initial weights of the head, the order of images, dropout and augmentation."""
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = "none"
    """`balanced` weighs classes by the inverse of their frequency; or a weight for each class by name."""
    label_smoothing: Fraction = 0.0
    """Share of each label spread over all classes."""
    mixed_precision: Literal["off", "bfloat16", "float16"] = "off"
    """Compute in half precision where the device has it; variables stay float32. Holds for all layers of any base,
    whatever a `.keras` file was saved with. SavedModels are refused, for their graphs say in which types they compute.
    """
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Also write a checkpoint every this many steps. One is always written at the end of an epoch."""
    warm_start: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[0-9]+$")] | None = None
    """A published model version, `name/3`, whose head this one begins with, class by class. The base begins pretrained
    all the same. Default: a fresh head."""
    shuffle_window_bytes: Annotated[int, Field(ge=1)] = 256 * 1024**2
    """Encoded images that a worker holds in memory to shuffle among."""
