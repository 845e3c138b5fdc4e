"""What a run comes to without Ray and without interruption: the measure of all others."""

import numpy as np

from tests.workbench import train
from transfer.dataset.manifest import load_dataset
from transfer.training.checkpoints import Checkpoint, Checkpoints
from transfer.training.run import Run


def trained_in_one_process(run: Run) -> Checkpoint:
    """The end of a run that this process trains."""
    train(run, load_dataset(run.store, run.dataset_name, run.dataset_number))
    return Checkpoints(run).complete()


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Between any two weights."""
    return max(float(np.max(np.abs(a - b))) for a, b in zip(left, right, strict=True))
