"""What the arms of `scripts.bench.reuse` are told to do, and what several of them need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.plain_keras import compiled_with_cosine, images_in
from transfer.config import Config, parse_config

BATCH = 32
DROPOUT = 0.2


@dataclass(frozen=True)
class Task:
    """What an arm is to do."""

    arm: str
    images: str
    """Folder of class folders."""
    network: str
    """The `.keras` file of the base; made by the arm `prepare`."""
    application: str
    """The network's name in keras.applications."""
    image_size: int
    epochs: int
    learning_rate: float
    storage: str
    shard_size_bytes: int
    heads: str
    """Folder where an arm leaves its trained head, which the arm `evaluate` finds there."""
    head: str = ""
    """Name of the head, without a suffix."""


def config_of(task: Task) -> Config:
    """The configuration that does what the other arms do: no augmentation, nothing held out, a head for all epochs."""
    held_out = {"validation": 0.0, "test": 0.0}
    return parse_config(
        {
            "name": "bench",
            "storage": task.storage,
            "dataset": {"source": task.images, "shard_size_bytes": task.shard_size_bytes, **held_out},
            "base": {"model": task.network, "image_size": task.image_size, "preprocessing": "-1..1"},
            "head": {"dropout": DROPOUT},
            "phases": [{"epochs": task.epochs, "learning_rate": task.learning_rate, "schedule": {"kind": "cosine"}}],
            "training": {"batch_size": BATCH},
            "publish": {"enabled": False},
        }
    )


def image_dataset(task: Task, *, shuffle: bool) -> Any:
    """Images as the tutorial reads them."""
    return images_in(Path(task.images), task.image_size, batch_size=BATCH, shuffle=shuffle)


def paths_of(task: Task) -> list[str]:
    return sorted(map(str, Path(task.images).rglob("*.jpg")))


def labels_of(images: Any) -> np.ndarray:
    """Labels of a dataset that is not shuffled, int32 [images]."""
    return np.array([images.class_names.index(Path(path).parent.name) for path in images.file_paths], np.int32)


def decoded(paths: list[str], size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Images from files with tf.data and nothing else, float32 [batch, size, size, 3]."""
    import tensorflow as tf

    def load(path: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (size, size))

    images = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def pooled_network(task: Task) -> Any:
    """The base in plain Keras, from pixels to pooled features."""
    import keras

    base = keras.models.load_model(task.network, compile=False)
    inputs = keras.Input((task.image_size, task.image_size, 3))
    features = base(keras.layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(features))


def compiled(task: Task, model: Any) -> Any:
    """The model, to be trained as this library does it in the other arms."""
    return compiled_with_cosine(
        model, learning_rate=task.learning_rate, steps=task.epochs * -(-len(paths_of(task)) // BATCH)
    )


def save_head(task: Task, kernel: np.ndarray, bias: np.ndarray) -> None:
    np.savez(Path(task.heads) / f"{task.head}.npz", kernel=kernel, bias=bias)
