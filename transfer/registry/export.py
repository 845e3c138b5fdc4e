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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from transfer.activations.inference import InferenceNetwork
from transfer.backbone.graph import nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.dataset.decode import load_image
from transfer.registry.warmup import write_warmup_requests
from transfer.training.model import TransferModel

Graph = Literal["merged", "plain"]
Tensors = dict[str, tf.Tensor]

MAX_CONSTANT_BYTES = 64 * 1024**2
"""Up to so many bytes of weights are constants of the graph: a small network then answers one image a quarter faster.
Those of a larger one are variables, since a protocol buffer, which the graph is, holds 2 GiB at most."""


def export(model: TransferModel, folder: Path, *, provenance: dict[str, Any], graph: Graph = "merged") -> None:
    """Write the SavedModel into `folder`, which must not exist or be empty.

    `provenance` (where the model came from) stands with the class names as JSON in `assets.extra`, which loaders ignore
    and people read; requests to warm a server up with stand beside it. `graph`: whether BatchNorms are merged into the
    layers before them, or stay as they were trained.
    """
    exported = tf.Module(name="transfer")
    signatures = _signatures(model, exported, merge=graph == "merged")
    tf.saved_model.save(exported, str(folder), signatures=signatures)
    extra = folder / "assets.extra"
    extra.mkdir()
    size = model.backbone.image_size
    description = {"classes": model.classes, "image_size": size, "provenance": provenance}
    (extra / "transfer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_warmup_requests(extra, image_size=size)


def _signatures(model: TransferModel, exported: tf.Module, *, merge: bool) -> dict[str, Any]:
    """The signatures, which share one traced network; `exported` is given what they need to live on."""
    size = model.backbone.image_size
    answer = _traced_answer(model, exported, merge=merge)

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
        "serving_default": _trace(from_image_bytes, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "pixels": _trace(from_pixels, tf.TensorSpec([None, None, None, 3], tf.float32, name="images")),
    }


def _traced_answer(model: TransferModel, exported: tf.Module, *, merge: bool) -> Any:
    """A concrete function from float32 images [batch, size, size, 3] in 0..255 to probabilities [batch, classes]."""
    base, head = model.backbone.network, model.head
    parts = [InferenceNetwork(network.inputs[0], [network], merge=merge) for network in (base, head)]
    weights: list[Any] = [part.weights for part in parts]
    if sum(weight.nbytes for arrays in weights for weight in arrays) > MAX_CONSTANT_BYTES:
        weights = [[tf.Variable(weight, trainable=False) for weight in arrays] for arrays in weights]
        exported.weights = weights
    # The variables and tables of a SavedModel are its own, and it knows which asset files they are filled from.
    operations = {id(node.operation): node.operation for node in nodes_in_order(base)}.values()
    exported.modules = [layer._module for layer in operations if isinstance(layer, SavedModelLayer)]  # noqa: SLF001

    def answer(images: tf.Tensor) -> tf.Tensor:
        value = model.backbone.preprocess(images)
        for part, held in zip(parts, weights, strict=True):
            (value,) = part(value, held)
        return tf.nn.softmax(value)

    size = model.backbone.image_size
    return _trace(answer, tf.TensorSpec([None, size, size, 3], tf.float32, name="images"))


def _trace(function: Callable[[tf.Tensor], Any], argument: tf.TensorSpec) -> Any:
    # Autograph would first rewrite the source of everything that is called: four times the time.
    return tf.function(function, autograph=False).get_concrete_function(argument)
