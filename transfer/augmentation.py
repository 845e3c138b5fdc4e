"""Random changes of training images that do not depend on how a batch is divided among replicas.

Dropout masks and augmentations are drawn for the whole global batch, from (seed, step), and each replica takes its own
rows. So the same step draws the same numbers in one process, on two replicas and on sixty-four workers. There is no
generator state, so a resumed run draws the numbers that the interrupted run would have drawn.

Drawing for the global batch on each replica costs next to nothing: a mask for 256 × 1,280 units is 0.3 M numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from transfer.config import AugmentationConfig


@dataclass
class StepRandomness:
    """The source of a replica's random numbers in one step.

    `seed`: int32 [2], different for each step; for a pack [streams, 2], one stream a trial. `positions`: int32 [rows],
    positions of this replica's rows in the global batch of `batch_size` rows.
    """

    seed: tf.Tensor
    positions: tf.Tensor
    batch_size: int
    _draws: int = field(default=0, init=False)

    def next_seed(self) -> tf.Tensor:
        """A seed, int32 [2], for the next draw of this step; each call returns another one."""
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self._draws)

    def uniform(self, row_shape: tuple[int, ...]) -> tf.Tensor:
        """Uniform numbers in [0, 1), float32 [rows, *row_shape]; a row gets the same numbers on any replica.

        For a pack [streams, rows, *row_shape]; each stream draws the same numbers as its trial would alone.
        """
        self._draws += 1

        def of_stream(seed: tf.Tensor) -> tf.Tensor:
            own = tf.random.experimental.stateless_fold_in(seed, self._draws)
            return tf.gather(tf.random.stateless_uniform((self.batch_size, *row_shape), seed=own), self.positions)

        if self.seed.shape.rank == 1:
            return of_stream(self.seed)
        return tf.stack([of_stream(seed) for seed in tf.unstack(self.seed)])


_current: ContextVar[StepRandomness | None] = ContextVar("step_randomness", default=None)


@contextmanager
def step_randomness(randomness: StepRandomness) -> Iterator[None]:
    """Let random layers draw from `randomness` while the block is traced or run."""
    token = _current.set(randomness)
    try:
        yield
    finally:
        _current.reset(token)


def current_randomness() -> StepRandomness:
    """The randomness of the step being traced. Raises RuntimeError outside of one."""
    randomness = _current.get()
    if randomness is None:
        raise RuntimeError("A random layer was called with training=True outside of a training step.")
    return randomness


class KeyedSeedGenerator(keras.random.SeedGenerator):
    """A SeedGenerator without state that passes the step's seeds to Keras functions."""

    def __init__(self) -> None:
        # super().__init__ is not called: it would create a variable that every replica advances by itself.
        self.name = "keyed_seed_generator"

    def next(self, ordered: bool = True) -> tf.Tensor:  # noqa: ARG002 - the signature is Keras's
        """A seed of the step being traced, int32 [2]."""
        return current_randomness().next_seed()


def dropped(inputs: tf.Tensor, numbers: tf.Tensor, rate: float | tf.Tensor) -> tf.Tensor:
    """Dropout: inputs whose uniform number is at least `rate`, scaled to keep the mean; the others become 0."""
    return tf.where(numbers >= rate, inputs / (1.0 - rate), tf.zeros_like(inputs))


@keras.saving.register_keras_serializable(package="transfer")
class KeyedDropout(keras.layers.Layer):
    """Dropout (Srivastava et al., 2014) on vectors [batch, units], with masks that do not depend on the replica."""

    def __init__(self, rate: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Masked and rescaled inputs in training, the inputs themselves otherwise."""
        if not training or self.rate == 0.0:
            return inputs
        return dropped(inputs, current_randomness().uniform(tuple(inputs.shape[1:])), self.rate)

    def get_config(self) -> dict[str, object]:
        """The configuration of the layer, as Keras saves it."""
        return {**super().get_config(), "rate": self.rate}


class Augmentation:
    """Augments a replica's images inside a training step.

    Each Keras layer draws its transformations for the whole global batch, and the replica takes the rows of its own
    images (see `StepRandomness`). So the change of an image does not depend on the number of replicas.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self._layers = _layers(config)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Augment images, float32 [batch, height, width, 3] in 0..255, within `step_randomness`."""
        randomness = current_randomness()
        seeds = KeyedSeedGenerator()
        # The layers use only the shape: they draw a transformation for each row.
        global_batch = tf.zeros((randomness.batch_size, *images.shape[1:]))
        for layer in self._layers:
            drawn = layer.get_random_transformation(global_batch, training=True, seed=seeds)
            own = {name: self._own_rows(name, value, images) for name, value in drawn.items()}
            images = layer.transform_images(images, own, training=True)
        return tf.clip_by_value(tf.cast(images, tf.float32), 0.0, 255.0)

    @staticmethod
    def _own_rows(name: str, value: Any, images: tf.Tensor) -> Any:
        """Rows of this replica's images in the values that the layer drew for the global batch."""
        if name == "batch_size":
            return tf.shape(images)[0]
        if name == "input_shape":
            return tuple(images.shape)
        if not tf.is_tensor(value) or value.shape.rank == 0:
            return value
        return tf.gather(value, current_randomness().positions)


def _layers(config: AugmentationConfig) -> list[keras.layers.Layer]:
    layers = keras.layers
    fill: dict[str, Any] = {"fill_mode": config.fill_mode}
    chosen: list[keras.layers.Layer] = []
    if config.flip != "none":
        mode = "horizontal_and_vertical" if config.flip == "both" else config.flip
        chosen.append(layers.RandomFlip(mode))
    if config.rotation_degrees:
        chosen.append(layers.RandomRotation(config.rotation_degrees / 360.0, **fill))
    if config.shift:
        chosen.append(layers.RandomTranslation(config.shift, config.shift, **fill))
    if config.shear_degrees:
        factor = math.tan(math.radians(config.shear_degrees))
        chosen.append(layers.RandomShear(factor, factor, **fill))
    if config.zoom:
        chosen.append(layers.RandomZoom(config.zoom, **fill))
    if config.brightness:
        chosen.append(layers.RandomBrightness(config.brightness, value_range=(0, 255)))
    if config.contrast:
        chosen.append(layers.RandomContrast(config.contrast, value_range=(0, 255)))
    return chosen
