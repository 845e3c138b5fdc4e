"""The documents of a run. `transfer/training/run.py` and `checkpoints.py` write them, and many rooms read them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from transfer.catalog.layout import Number, numbered


class DatasetVersion(BaseModel):
    """A version of a dataset, by its name and number."""

    name: str
    number: Number

    @property
    def reference(self) -> str:
        """How the version is named for people: `flowers/00000003`."""
        return numbered(self.name, self.number)


class RunStart(BaseModel):
    """What `run.json` says. `started` and `started_by` are not in those of earlier releases."""

    identity: dict[str, Any]
    config: dict[str, Any]
    dataset: DatasetVersion
    started: str | None = None
    """When, in UTC."""
    started_by: str | None = None
    """Folder of the night or the sweep that it was first a run of."""

    @property
    def is_of_fold(self) -> bool:
        """Whether it only served to cross-validate a trial."""
        return "fold" in self.identity


class Attempt(BaseModel):
    """An entry of the log of attempts at training a run, made before anything looks at what is cached."""

    frozen_parts: tuple[str, ...]
    """Digests of the frozen parts whose cached features it relies on."""
    started: str
    """When, in UTC."""


class Usage(BaseModel):
    """What an epoch took of the machines: sums over the processes of all workers.

    `cpu_s`, `gpu_s`: seconds of CPUs at work, and of GPUs held. `memory_bytes`: peaks of resident memory so far.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cpu_s: float
    gpu_s: float
    memory_bytes: int
    workers: int


class EpochRow(BaseModel):
    """Figures of one finished epoch, all finite. `phase` and `epoch` count from 0, `epoch` over the whole run.

    Validation figures are None where the dataset has no validation split. `learning_rate` is that of the next step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    phase: int
    epoch: int
    loss: float
    accuracy: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    learning_rate: float
    seconds: float
    images_per_second: float | None = None
    """That were trained on; validation is not in it. None where several trainings share the time."""
    usage: Usage | None = None
    """None where several trainings share the machine, and in earlier releases."""


class Progress(BaseModel):
    """How far a run has come: the next thing to do is step `step` of epoch `epoch` of phase `phase`."""

    model_config = ConfigDict(frozen=True)

    phase: int = 0
    epoch: int = 0
    """Within the phase."""
    step: int = 0
    """Within the epoch."""
    global_step: int = 0
    """Over the whole run; keys the random numbers."""
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Loss, correct answers and images of the epoch so far."""
    best_score: float | None = None
    """Validation metric of the phase's best epoch, higher is better."""
    best_checkpoint: int | None = None
    epochs_since_best: int = 0
    history: tuple[EpochRow, ...] = ()
    complete: bool = False


class Writer(BaseModel):
    """The process that wrote a checkpoint, and when, in UTC."""

    model_config = ConfigDict(frozen=True)

    host: str
    process: int
    at: str


class CheckpointEntry(BaseModel):
    """An entry of the log of checkpoints."""

    model_config = ConfigDict(frozen=True)

    progress: Progress
    weights: str
    """SHA-256 of the arrays that the run trains."""
    optimizer: str
    """SHA-256 of the arrays of the phase's optimiser."""
    written: Writer | None = None
    """Not in those of earlier releases."""


class ReportEntry(BaseModel):
    """An entry of the log of evaluations."""

    model_config = ConfigDict(frozen=True)

    split: str
    files: dict[str, str]
    """SHA-256 of each file of the report, by its name."""
    part_rows: tuple[int, ...] = ()
    """Images of each file of predictions, in order; empty if all are in one, as in the reports of earlier releases."""
    at: str | None = None
    """When, in UTC; not in those of earlier releases."""
