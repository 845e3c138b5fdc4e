"""A trained model as a SavedModel that takes raw image bytes, and that every loader of SavedModels can run.

Decoding, orientation, resizing and preprocessing are inside, by the same functions that training used. The signatures:

- `serving_default`: `image_bytes` string [batch] (JPEG, PNG, GIF, BMP or WebP)
- `pixels`: `images` float32 [batch, height, width, 3] in 0..255, RGB, upright; resized inside

Both answer `probabilities` float32 [batch, classes], `class_index` int32 [batch] and `class_name` string [batch].

Nothing of Keras is saved. A session (TensorFlow Serving, the C, Java and Go APIs) restores the variables that it finds
under their names in the object graph: with Keras's own variables there, it would find none of the network's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from transfer.activations.prefix import FEATURE_CODE_VERSION
from transfer.activations.tracing import traced
from transfer.config import ServingGraph
from transfer.dataset.decode import load_image
from transfer.registry.warmup import write_warmup_requests
from transfer.training.inference import trace_inference
from transfer.training.model import TransferModel

Tensors = dict[str, tf.Tensor]


def export(model: TransferModel, folder: Path, *, provenance: dict[str, Any], graph: ServingGraph = "merged") -> None:
    """Write the SavedModel into `folder`, which must not exist or be empty.

    `provenance` (where the model came from) stands with the class names as JSON in `assets.extra`, which loaders ignore
    and people read; requests to warm a server up with stand beside it. `graph`: whether BatchNorms are merged into the
    layers before them, or stay as they were trained.
    """
    inference = trace_inference(model, graph=graph)
    exported = tf.Module(name="transfer")
    # SavedModel keeps what it can reach through attributes of a Module.
    exported.weights, exported.modules = inference.weights, inference.modules
    tf.saved_model.save(exported, str(folder), signatures=_signatures(model, inference.answer))
    extra = folder / "assets.extra"
    extra.mkdir()
    size = model.backbone.image_size
    description = {
        "classes": model.classes,
        "image_size": size,
        "decoding": FEATURE_CODE_VERSION,
        "provenance": provenance,
    }
    (extra / "transfer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_warmup_requests(extra, image_size=size)


def _signatures(model: TransferModel, answer: Any) -> dict[str, Any]:
    """The signatures, which share the traced network `answer`."""
    size = model.backbone.image_size

    def from_image_bytes(image_bytes: tf.Tensor) -> Tensors:
        decoded = tf.TensorSpec([size, size, 3])
        images = tf.map_fn(lambda encoded: load_image(encoded, size), image_bytes, fn_output_signature=decoded)
        return named(answer(images))

    def from_pixels(images: tf.Tensor) -> Tensors:
        resized = tf.image.resize(images, (size, size))
        return named(answer(tf.ensure_shape(resized, [None, size, size, 3])))

    def named(probabilities: tf.Tensor) -> Tensors:
        index = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        class_name = tf.gather(tf.constant(model.classes), index)
        return {"probabilities": probabilities, "class_index": index, "class_name": class_name}

    return {
        "serving_default": traced(from_image_bytes, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "pixels": traced(from_pixels, tf.TensorSpec([None, None, None, 3], tf.float32, name="images")),
    }
