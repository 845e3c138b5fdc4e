"""The model that a finished run trained, in this process."""

from __future__ import annotations

from transfer.dataset.manifest import Dataset
from transfer.training.checkpoints import Checkpoint, Checkpoints, assign
from transfer.training.model import TransferModel, build_model_of
from transfer.training.run import Run


def restore_model(run: Run, dataset: Dataset) -> tuple[TransferModel, Checkpoint]:
    """Build the run's network and put its trained weights in.

    Raises TrainingError when the run is not finished, BaseChangedError when its base is another one by now.
    """
    checkpoint = Checkpoints(run).complete()
    model = build_model_of(run, dataset)
    assign(model.variables_of([phase.unfreeze for phase in run.config.phases]), checkpoint.weights)
    return model, checkpoint
