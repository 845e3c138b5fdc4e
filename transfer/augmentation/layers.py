"""Random changes of training images, with Keras's own layers, on the accelerator."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from transfer.augmentation.randomness import KeyedSeedGenerator, current_randomness
from transfer.config import AugmentationConfig


class Augmentation:
    """Augments a replica's images inside a training step.

    Each Keras layer draws its transformation for the whole global batch, and the replica takes the rows of its own
    images (see `randomness`), so what happens to an image does not depend on the number of replicas.
    """

    def __init__(self, config: AugmentationConfig) -> None:
        self._layers = _layers(config)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Augmented images, float32 [batch, height, width, 3] in 0..255. Call it within `step_randomness`."""
        randomness = current_randomness()
        seeds = KeyedSeedGenerator()
        # Only its shape is used: the layers draw a transformation for each of its rows.
        global_batch = tf.zeros((randomness.batch_size, *images.shape[1:]))
        for layer in self._layers:
            drawn = layer.get_random_transformation(global_batch, training=True, seed=seeds)
            own = {name: self._own_rows(name, value, images) for name, value in drawn.items()}
            images = layer.transform_images(images, own, training=True)
        return tf.clip_by_value(tf.cast(images, tf.float32), 0.0, 255.0)

    @staticmethod
    def _own_rows(name: str, value: Any, images: tf.Tensor) -> Any:
        """What the layer drew for the global batch, for this replica's images only."""
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
