"""The model of a run, in this process: as it begins, and as it was trained.

Both are on the process's own workbench: their weights are valid until another model is asked for there.
"""

from __future__ import annotations

from transfer.dataset.manifest import Dataset
from transfer.training.checkpoints import Checkpoint, Checkpoints, assign
from transfer.training.model import TransferModel
from transfer.training.pinned_base import hold_to_base
from transfer.training.run import Run
from transfer.training.workbench import own_workbench


def untrained_model(run: Run, dataset: Dataset) -> TransferModel:
    """The model that a run begins with, on the base that it began with.

    Raises BaseChangedError when the base is another one by now, and what `Workbench.model` raises.
    """
    workbench = own_workbench()
    with workbench.strategy.scope():
        workbench.take_turn(_Visit())
        workbench.forget_programs()
        model = workbench.model(run.config, dataset.classes)
    hold_to_base(run, model.digest)
    return model


def restore_model(run: Run, dataset: Dataset) -> tuple[TransferModel, Checkpoint]:
    """The model that a finished run trained.

    Raises TrainingError when the run is not finished, and what `untrained_model` raises.
    """
    checkpoint = Checkpoints(run).complete()
    model = untrained_model(run, dataset)
    with own_workbench().strategy.scope():
        trained = model.variables_of([phase.unfreeze for phase in run.config.phases])
        own_workbench().will_train(model, trained)
        assign(trained, checkpoint.weights)
    return model, checkpoint


class _Visit:
    """A turn of somebody who trains nothing."""

    def suspend(self) -> None:
        """Nothing of its own is in the variables."""
