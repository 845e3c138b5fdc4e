"""Training as tests do it: compiling its steps takes most of a small run, so runs of one process share them.

That no run notices is what tests/proof/test_workbench.py is about.
"""

import functools

import tensorflow as tf

from transfer.training import loop, lr_range
from transfer.training.workbench import Workbench


@functools.cache
def workbench_of(strategy):
    """What all tests under a strategy share."""
    return Workbench(strategy)


def train(run, dataset, *, strategy=None, **options):
    """Train a run in this process, on one replica unless a strategy says otherwise."""
    return loop.train(run, dataset, workbench=workbench_of(strategy or tf.distribute.get_strategy()), **options)


def measure_curve(test, dataset):
    """Measure a range test in this process."""
    return lr_range.measure_curve(test, dataset, workbench=workbench_of(tf.distribute.get_strategy()))
