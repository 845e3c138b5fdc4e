"""What is known about each finished epoch of a run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


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
