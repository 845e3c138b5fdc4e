"""A trained model as a SavedModel that takes raw image bytes.

Decoding, orientation, resizing and preprocessing are inside, by the same functions that training used. The signatures:

- `serving_default`: `image_bytes` string [batch] (JPEG, PNG, GIF, BMP or WebP)
- `pixels`: `images` float32 [batch, height, width, 3] in 0..255, RGB, upright; resized inside

Both answer `probabilities` float32 [batch, classes], `class_index` int32 [batch] and `class_name` string [batch].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from transfer.dataset.decode import load_image
from transfer.training.model import TransferModel


class ServingModel(tf.Module):
    """What is exported: a trained model behind its signatures."""

    def __init__(self, model: TransferModel) -> None:
        super().__init__(name="transfer")
        self._model = model
        # SavedModel keeps what it can reach through attributes of a Module.
        self.network = model.backbone.network
        self.head = model.head
        self.class_names = tf.constant(model.classes)
        self._image_size = model.backbone.image_size

    @tf.function
    def from_image_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer for encoded images, string [batch]."""
        size = self._image_size
        images = tf.map_fn(
            lambda encoded: load_image(encoded, size), image_bytes, fn_output_signature=tf.TensorSpec([size, size, 3])
        )
        return self._answer(images)

    @tf.function
    def from_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer for decoded images, float32 [batch, height, width, 3] in 0..255."""
        resized = tf.image.resize(images, (self._image_size, self._image_size))
        return self._answer(tf.ensure_shape(resized, [None, self._image_size, self._image_size, 3]))

    def _answer(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        probabilities = tf.nn.softmax(self._model.logits(images))
        index = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        return {
            "probabilities": probabilities,
            "class_index": index,
            "class_name": tf.gather(self.class_names, index),
        }


def export(model: TransferModel, folder: Path, *, provenance: dict[str, Any]) -> None:
    """Write the SavedModel into `folder`, which must not exist or be empty.

    Class names and `provenance` (where the model came from) stand as JSON in `assets.extra`, which loaders ignore and
    people read.
    """
    serving = ServingModel(model)
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    images = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")
    signatures = {
        "serving_default": serving.from_image_bytes.get_concrete_function(image_bytes),
        "pixels": serving.from_pixels.get_concrete_function(images),
    }
    tf.saved_model.save(serving, str(folder), signatures=signatures)
    extra = folder / "assets.extra"
    extra.mkdir()
    description = {"classes": model.classes, "image_size": model.backbone.image_size, "provenance": provenance}
    (extra / "transfer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
