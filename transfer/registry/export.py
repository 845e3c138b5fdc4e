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
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from transfer.config import ImageInput, ServingGraph
from transfer.dataset.decode import fit_image, load_image
from transfer.features.frozen import FEATURE_CODE_VERSION
from transfer.features.network import traced
from transfer.training.inference import trace_inference
from transfer.training.model import TransferModel

DESCRIPTION = "assets.extra/transfer.json"
"""What a version is, for people and for this project: a file among its files."""
FILE_NAME = "tf_serving_warmup_requests"
"""In `assets.extra`, where TensorFlow Serving looks for it."""


def write_warmup_requests(folder: Path, *, image_input: ImageInput) -> None:
    """Write one request for each signature, with a gray image, into `folder`."""
    gray = tf.fill(image_input.shape, tf.constant(128, tf.uint8))
    requests = {
        "serving_default": {"image_bytes": tf.make_tensor_proto([tf.io.encode_jpeg(gray).numpy()])},
        # One number and a shape, rather than as many numbers as the image has.
        "pixels": {"images": tf.make_tensor_proto(128.0, tf.float32, [1, *image_input.shape])},
    }
    with tf.io.TFRecordWriter(str(folder / FILE_NAME)) as writer:
        for signature, inputs in requests.items():
            request = PredictRequest(inputs=inputs)
            request.model_spec.signature_name = signature
            writer.write(PredictionLog(predict_log=PredictLog(request=request)).SerializeToString())


Tensors = dict[str, tf.Tensor]


def export(
    model: TransferModel,
    folder: Path,
    *,
    provenance: dict[str, Any],
    graph: ServingGraph = "merged",
    background: str | None = None,
) -> None:
    """Write the SavedModel into `folder`, which must not exist or be empty.

    `provenance` (where the model came from) stands with the names of the classes, and of those that are never answered,
    as JSON in `assets.extra`, which loaders ignore and people read; requests to warm a server up with stand beside it.
    `graph`: whether BatchNorms are merged into the layers before them, or stay as they were trained. `background`:
    color that encoded images with transparent pixels are put on, as those that the model was trained on.
    """
    inference = trace_inference(model, graph=graph)
    exported = tf.Module(name="transfer")
    # SavedModel keeps what it can reach through attributes of a Module.
    exported.weights, exported.modules = inference.weights, inference.modules
    tf.saved_model.save(exported, str(folder), signatures=_signatures(model, inference.answer, background))
    described = folder / DESCRIPTION
    described.parent.mkdir()
    image_input = model.backbone.image_input
    description = {
        "classes": model.classes,
        "untrained_classes": model.untrained_classes,
        "image_input": image_input.describe(),
        "decoding": FEATURE_CODE_VERSION,
        "background": background,
        "provenance": provenance,
    }
    described.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_warmup_requests(described.parent, image_input=image_input)


def _signatures(model: TransferModel, answer: Any, background: str | None) -> dict[str, Any]:
    """The signatures, which share the traced network `answer`."""
    image_input = model.backbone.image_input

    def from_image_bytes(image_bytes: tf.Tensor) -> Tensors:
        decoded = tf.TensorSpec(image_input.shape)
        images = tf.map_fn(
            lambda encoded: load_image(encoded, image_input, background), image_bytes, fn_output_signature=decoded
        )
        return named(answer(images))

    def from_pixels(images: tf.Tensor) -> Tensors:
        return named(answer(tf.ensure_shape(fit_image(images, image_input), [None, *image_input.shape])))

    def named(probabilities: tf.Tensor) -> Tensors:
        index = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        class_name = tf.gather(tf.constant(model.classes), index)
        return {"probabilities": probabilities, "class_index": index, "class_name": class_name}

    return {
        "serving_default": traced(from_image_bytes, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "pixels": traced(
            from_pixels, tf.TensorSpec([None, None, None, image_input.channels], tf.float32, name="images")
        ),
    }
