"""The sections `phases`, `training` and `workers`: how a model is trained, and in how many processes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from transfer.config.section import Decides, Fraction, PositiveFloat, Section, Varies


class WorkersConfig(Section, decides=Decides.PLACEMENT):
    """In how many processes training runs."""

    count: Annotated[int, Field(ge=0)] = 0
    """`0`: in this process, without Ray. `1`: one Ray worker. `n`: n Ray workers, which train one model together."""
    min_count: Annotated[int, Field(ge=1)] | None = None
    """Fewest workers that a run starts with, or goes on with after a failure, while there is no room for `count`; it
    takes more as they come. Default: `count`."""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """GPUs, and so replicas, of each worker."""
    cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray reserves for each worker."""
    collectives: Literal["auto", "ring", "nccl"] = "auto"
    """How workers add their gradients up. `auto`: NCCL between GPUs, else TensorFlow's ring. `ring` where NCCL does not
    work, as between machines that it cannot connect."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after a worker dies, before the job fails."""
    start_timeout_s: PositiveFloat = 600.0
    """Fail when the cluster cannot start the workers in this time."""
    hang_timeout_s: PositiveFloat = 120.0
    """A worker that does not answer for this time is ended, as if it had died."""
    stall_timeout_s: PositiveFloat = 1800.0
    """Where no worker of a group ends a step, a part of its validation or a checkpoint for this time, the one that
    holds up the others is ended, as if it had died. One call may hold 100 steps: give it more time than those take."""

    @model_validator(mode="after")
    def _fewest_are_not_more(self) -> WorkersConfig:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"workers.min_count is {self.min_count} and workers.count {self.count}, which is fewer")
        return self

    @property
    def counts(self) -> range:
        """Numbers of workers that may train together."""
        return range(self.count if self.min_count is None else self.min_count, self.count + 1)

    @property
    def replicas(self) -> int:
        """Number of copies of the model that are trained together."""
        return max(self.count, 1) * max(self.gpus_per_worker, 1)


class ScheduleConfig(Section, decides=Decides.LEARNING):
    """How the learning rate moves within a phase."""

    kind: Literal["constant", "cosine", "exponential"] = "constant"
    """`cosine` falls to `final_share` of the learning rate along half a cosine (Loshchilov and Hutter, SGDR, 2017,
    without restarts), `exponential` geometrically."""
    warmup_epochs: Annotated[float, Field(ge=0.0)] = 0.0
    """Rise linearly from zero over this many epochs first."""
    final_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Learning rate at the end of the phase, as a share of the peak."""


class OptimizerConfig(Section, decides=Decides.LEARNING):
    """The optimiser. A plain string is short for `{name: …}`."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Adam (Kingma and Ba, 2015), AdamW (Loshchilov and Hutter, 2019: decoupled weight decay), or SGD."""
    momentum: Annotated[Fraction, Varies.IN_TRAINING] = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov momentum for SGD (Sutskever et al., 2013)."""
    weight_decay: Annotated[float, Field(ge=0.0), Varies.IN_TRAINING | Varies.IN_PACK] = 0.004
    """Decoupled weight decay of AdamW."""
    clip_norm: Annotated[PositiveFloat | None, Varies.IN_TRAINING] = None
    """Scale gradients down so that their global norm, over all replicas, is at most this (Pascanu et al., 2013)."""


class EarlyStoppingConfig(Section, decides=Decides.LEARNING):
    """End a phase when validation stops improving, and go back to its best epoch (Prechelt, 1998)."""

    metric: Literal["loss", "accuracy"] = "loss"
    """Validation metric that is watched."""
    patience_epochs: Annotated[int, Field(ge=1)] = 3
    """Epochs without improvement before stopping."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """Smaller changes do not count as improvement."""


class LoraConfig(Section, decides=Decides.LEARNING):
    """Low-rank adapters in the unfrozen blocks, which a phase trains instead of the blocks' weights (Hu et al., 2021).

    Each target layer gets two small matrices A and B, whose product is added to its kernel. They start as no
    difference. At the end of the phase they are merged: later phases and the published model have plain weights.
    """

    rank: Annotated[int, Field(ge=1)] = 8
    """Columns of A and rows of B: the rank of the difference."""
    alpha: PositiveFloat = 16.0
    """The difference is A·B, multiplied by alpha / rank."""
    targets: Literal["attention", "dense", "all"] = "attention"
    """Layers that get adapters, among the Dense and EinsumDense layers of the unfrozen blocks, nested ones too:
    `attention` those in a layer whose class has `Attention` in its name, such as the four projections of
    MultiHeadAttention, and those that have `attention` in their own name; `dense` all others; `all` both."""


def unfreeze_title(unfreeze: int | str, *, rank: int | None = None) -> str:
    """Describe what a phase trains: `head`, `last 2 blocks`, `all blocks`, `from block4_conv1 up`.

    Args:
        unfreeze: Integer, `all`, or name of a layer: the phase's `unfreeze`.
        rank: Integer. Rank of the phase's adapters: `last 2 blocks by LoRA of rank 8`. None: it has none.

    Returns:
        A few words, `head` and `all blocks` in lower case.
    """
    return _depth_title(unfreeze) + (f" by LoRA of rank {rank}" if rank else "")


def _depth_title(unfreeze: int | str) -> str:
    match unfreeze:
        case 0:
            return "head"
        case 1:
            return "last block"
        case int(blocks):
            return f"last {blocks} blocks"
        case "all":
            return "all blocks"
        case layer:
            return f"from {layer} up"


class PhaseConfig(Section, decides=Decides.LEARNING):
    """One stretch of training. Freeze, then unfreeze, is two."""

    unfreeze: Annotated[int | str, Decides.FEATURES] = 0
    """`0` trains the head only, `n` the last n blocks too, `all` everything, a layer's name from that layer up.
    `transfer inspect` lists the blocks."""
    # Left out where it is not set: ids of runs without adapters are those of earlier releases.
    lora: LoraConfig | None = Field(default=None, exclude_if=lambda lora: lora is None)
    """Train adapters in the unfrozen blocks, and the head, instead of the blocks' weights. Needs `unfreeze` above 0.
    Default: train the weights."""
    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over the training split."""
    learning_rate: Annotated[PositiveFloat, Varies.IN_TRAINING | Varies.IN_PACK | Varies.IN_PROGRAM] = 1e-3
    """Peak learning rate."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser of this phase; its state starts afresh."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate schedule of this phase."""
    early_stopping: EarlyStoppingConfig | None = None
    """Default: run all epochs and keep the last."""
    augment: Annotated[bool, Decides.FEATURES] = True
    """Whether the `augmentation` section applies in this phase."""

    @property
    def title(self) -> str:
        """What the phase trains, in words."""
        return unfreeze_title(self.unfreeze, rank=self.lora.rank if self.lora else None)

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

    @model_validator(mode="after")
    def _lora_has_blocks(self) -> PhaseConfig:
        if self.lora is not None and self.unfreeze == 0:
            raise ValueError(
                "lora is given and unfreeze is 0, so no block would get an adapter; set unfreeze to a number of blocks "
                "or `all`, or leave lora out"
            )
        return self


class TrainingConfig(Section, decides=Decides.LEARNING):
    """What all phases share."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    """Images a step over all workers and replicas; must be divisible by their number."""
    seed: Annotated[int, Field(ge=0, lt=2**31), Decides.FEATURES, Varies.IN_PACK | Varies.IN_PROGRAM] = 0
    """Decides initial weights of the head, the order of images, dropout and augmentation."""
    class_weights: Annotated[Literal["none", "balanced"] | dict[str, PositiveFloat], Varies.IN_PROGRAM] = "none"
    """`balanced` weighs classes by the inverse of their frequency (King and Zeng, 2001); or a weight for each class by
    name."""
    label_smoothing: Annotated[Fraction, Varies.IN_TRAINING | Varies.IN_PACK] = 0.0
    """Share of each label that is spread over all classes with training images (Szegedy et al., 2016)."""
    mixed_precision: Annotated[Literal["off", "bfloat16", "float16"], Decides.FEATURES] = "off"
    """Compute in half precision where the device has it; variables stay float32 (Micikevicius et al., 2018). This holds
    for all layers of any base, whatever a `.keras` file was saved with. SavedModels are refused, because
    their graphs fix the types in which they compute."""
    checkpoint_steps: Annotated[Annotated[int, Field(ge=1)] | None, Decides.PLACEMENT] = None
    """Also write a checkpoint every this many steps. One is always written at the end of an epoch."""
    warm_start: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}/[0-9]+$")] | None = None
    """A published model version, `name/3`, whose head this one begins with, class by class. The base begins pretrained
    all the same. Default: a fresh head."""
    shuffle_window_bytes: Annotated[int, Field(ge=1)] = 256 * 1024**2
    """Encoded images in memory to shuffle among. A split of at most this size is held whole by each worker, and read
    once a run. A larger one is read in every epoch, and each worker holds its part of the window."""
