"""What the arms of `scripts.bench.sweep` are told to do, and what several of them need."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.common import CLASSES
from scripts.bench.plain_keras import compiled_with_cosine, images_in
from transfer.config import Config, parse_config

BATCH = 32
DROPOUT = 0.2
VALIDATION = 0.2


@dataclass(frozen=True)
class Task:
    """What an arm is to do."""

    arm: str
    folder: str
    """Holds the images, and what the arm `prepare` makes of them."""
    storage: str
    image_size: int
    epochs: int
    depths: list[int]
    rates: list[float]
    dropouts: list[float]
    """Those of the head that the library searches, too; all other arms know the first one only."""
    seed: int = 0

    @property
    def images(self) -> Path:
        """Class folders."""
        return Path(self.folder, "images")

    def split(self, name: str) -> Path:
        """Class folders of what the library put into that split."""
        return Path(self.folder, "splits", name)

    @property
    def network(self) -> Path:
        """The base."""
        return Path(self.folder, "MobileNetV2.keras")

    @property
    def unfrozen(self) -> Path:
        """The names of the layers that each depth trains, as JSON."""
        return Path(self.folder, "unfrozen.json")


class Spans:
    """When something began and when it ended, in seconds since 1970."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Note the block."""
        started = time.time()
        try:
            yield
        finally:
            self.of[name] = (started, time.time())


def config_of(task: Task) -> Config:
    """The configuration that searches what the other arms do."""
    space = {"phases.0.unfreeze": task.depths, "phases.0.learning_rate": task.rates, "head.dropout": task.dropouts}
    phase = {"epochs": task.epochs, "learning_rate": task.rates[0], "schedule": {"kind": "cosine"}}
    return parse_config(
        {
            "name": "bench",
            "storage": task.storage,
            "dataset": {"source": str(task.images), "validation": VALIDATION, "test": 0.0},
            "base": {"model": str(task.network), "image_size": task.image_size, "preprocessing": "-1..1"},
            "head": {"dropout": task.dropouts[0]},
            "phases": [phase],
            "training": {"batch_size": BATCH, "seed": task.seed},
            "publish": {"enabled": False},
            "sweep": {"space": space, "search": "grid"},
        }
    )


def split_images(task: Task, split: str, *, shuffle: bool) -> Any:
    """Images of a split as the tutorials read them."""
    return images_in(task.split(split), task.image_size, batch_size=BATCH, shuffle=shuffle)


def pooled_network(task: Task, depth: int) -> Any:
    """The base in plain Keras, from pixels to pooled features, frozen up to where the library freezes it."""
    import keras

    base = keras.models.load_model(task.network, compile=False)
    unfrozen = json.loads(task.unfrozen.read_text())[str(depth)]
    for layer in base.layers:
        layer.trainable = layer.name in unfrozen

    class InInferenceMode(keras.layers.Layer):
        """The tutorial's `base(x, training=False)`, as its authors meant it.

        In a functional model the `fit` of Keras 3.15 makes that `training=True` again: BatchNorms that are not frozen
        would use the statistics of batches, and validate badly.
        """

        def __init__(self) -> None:
            super().__init__()
            self.base = base

        def call(self, images: Any) -> Any:
            return self.base(images, training=False)

    inputs = keras.Input((task.image_size, task.image_size, 3))
    features = InInferenceMode()(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(features))


def with_head(task: Task, inputs: Any, features: Any, *, learning_rate: float) -> Any:
    """The model from inputs to logits, ready to be trained."""
    import keras

    outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(task.dropouts[0])(features))
    rows = sum(1 for _ in task.split("train").rglob("*.jpg"))
    steps = task.epochs * -(-rows // BATCH)
    return compiled_with_cosine(keras.Model(inputs, outputs), learning_rate=learning_rate, steps=steps)
