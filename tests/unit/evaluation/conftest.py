"""Predictions and reports to test with."""

import numpy as np
import pytest

from transfer.catalog.run import EpochRow
from transfer.evaluation.metrics import Tally
from transfer.evaluation.mistakes import worst_mistakes
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report


def _predictions(labels, probabilities, classes=None):
    probabilities = np.asarray(probabilities, np.float32)
    classes = classes or [f"class {index}" for index in range(probabilities.shape[1])]
    keys = [f"image-{row}.png" for row in range(len(labels))]
    return Predictions(keys, np.asarray(labels, np.int32), probabilities, classes)


def _random_predictions(*, images, classes, seed=0, names=None):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes)) + 2.0 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return _predictions(labels, probabilities, names)


def _report(predictions, **changes):
    rows = [
        EpochRow(
            phase=epoch // 2,
            epoch=epoch,
            loss=1.0 / (epoch + 1),
            accuracy=1 - 0.4 / (epoch + 1),
            validation_loss=1.2 / (epoch + 1),
            validation_accuracy=1 - 0.5 / (epoch + 1),
            learning_rate=1e-3 if epoch < 2 else 1e-5,
            seconds=1.5,
        )
        for epoch in range(4)
    ]
    content = {
        "name": "digits",
        "dataset": "digits/00000001",
        "run_id": "digits-0123456789ab",
        "split": "test",
        "base": "MobileNetV2",
        "metrics": Tally.of(predictions).metrics(),
        "history": rows,
        "mistakes": worst_mistakes(predictions, 24, digests=predictions.keys),
        "counts": {"train": dict.fromkeys(predictions.classes, 8), "test": dict.fromkeys(predictions.classes, 2)},
        "config": {"name": "digits", "phases": [{"unfreeze": 0}, {"unfreeze": 2}]},
    }
    return Report(**(content | changes))


@pytest.fixture
def predictions_of():
    return _predictions


@pytest.fixture
def random_predictions():
    return _random_predictions


@pytest.fixture
def report_of():
    return _report
