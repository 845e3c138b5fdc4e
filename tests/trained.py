"""Training as tests do it, and what its results are compared with.

Compiling its steps takes most of a small run, so runs of one process share them. That no run notices is what
tests/proof/test_shared_models.py is about.
"""

import functools

import numpy as np
import tensorflow as tf

from transfer.backbone.load import build_backbone
from transfer.dataset.manifest import load_dataset
from transfer.training import loop
from transfer.training.checkpoints import Checkpoint, Checkpoints
from transfer.training.model import TransferModel, build_head_for
from transfer.training.run import Run
from transfer.training.shared_models import SharedModels
from transfer.tuning import lr_find


@functools.cache
def models_under(strategy):
    """What all tests under a strategy share."""
    return SharedModels(strategy)


def build_model(config, classes):
    """A model that no other test has: the pretrained base and a new head."""
    backbone = build_backbone(config)
    return TransferModel(backbone, build_head_for(backbone, config, classes), classes, digest=backbone.digest())


def train(run, dataset, *, strategy=None, **options):
    """Train a run in this process, on one replica unless a strategy says otherwise."""
    return loop.train(run, dataset, shared=models_under(strategy or tf.distribute.get_strategy()), **options)


def measure_curve(test, dataset):
    """Measure a range test in this process."""
    return lr_find.measure_curve(test, dataset, shared=models_under(tf.distribute.get_strategy()))


def trained_in_one_process(run: Run) -> Checkpoint:
    """The end of a run that this process trains."""
    train(run, load_dataset(run.store, run.dataset_name, run.dataset_number))
    return Checkpoints(run).complete()


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Between any two weights."""
    return max(float(np.max(np.abs(a - b))) for a, b in zip(left, right, strict=True))


def plain_logits(model, images):
    """Logits of a TransferModel, float32 [n, classes], for images, float32 [n, image_size, image_size, 3] in 0..255."""
    features = model.backbone.network(model.backbone.preprocess(images), training=False)
    return model.head(features, training=False)
