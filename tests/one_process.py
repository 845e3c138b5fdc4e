"""What a run comes to without Ray and without interruption: the measure of all others."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from transfer.config.reference import render
from transfer.training.checkpoints import Checkpoint, Checkpoints
from transfer.training.run import Run

TRAIN_HERE = """
import sys
import tensorflow as tf
from pathlib import Path
from transfer.config import load_config
from transfer.dataset.manifest import load_dataset
from transfer.storage import open_store
from transfer.training.loop import train
from transfer.training.run import load_run
from transfer.training.workbench import Workbench
config = load_config(Path(sys.argv[1]))
store = open_store(config.storage)
run = load_run(store, sys.argv[2], config)
train(run, load_dataset(store, "digits"), workbench=Workbench(tf.distribute.get_strategy()))
"""


def trained_in_one_process(run: Run, folder: Path) -> Checkpoint:
    """The end of a run that a process of its own trains; its configuration is written into `folder`."""
    path = folder / "config.yaml"
    path.write_text(render(run.config))
    subprocess.run([sys.executable, "-c", TRAIN_HERE, path, run.id], check=True, capture_output=True)
    return Checkpoints(run).complete()


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Between any two weights."""
    return max(float(np.max(np.abs(a - b))) for a, b in zip(left, right, strict=True))
