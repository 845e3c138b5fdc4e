"""Export of a trained model as a SavedModel that takes encoded images and that every SavedModel loader can run.

The graph contains decoding, orientation, resizing and preprocessing: the same functions that training used. Signatures:

- `serving_default`: `image_bytes` string [batch] (JPEG, PNG, GIF, BMP or WebP)
- `pixels`: `images` float32 [batch, any height, any width, channels] in 0..255, RGB, upright; fitted inside
- `fitted`: `images` float32 [batch, height, width, channels] in 0..255, as the network takes them
- `embeddings`: the same images; returns `embeddings` float32 [batch, features], the base's pooled features, too

All return `probabilities` float32 [batch, classes], `class_index` int32 [batch] and `class_name` string [batch]. A
network whose head takes the whole feature map has no `embeddings`.

No Keras object is saved. A session (TensorFlow Serving, the C, Java and Go APIs) restores variables by their names in
the object graph; if Keras's own variables were in it, the session would find none of the network's variables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from transfer.catalog.layout import VERSION_DESCRIPTION
from transfer.config import ImageInput, ServingGraph
from transfer.dataset.decode import fit_image, load_image
from transfer.features.frozen import FEATURE_CODE_VERSION
from transfer.features.network import traced
from transfer.training.inference import Inference, trace_inference
from transfer.training.model import TransferModel

FITTED = "fitted"
"""Signature for images that `fit_image` has made already: fitted twice, an image would be cropped twice."""
EMBEDDINGS = "embeddings"
"""Signature for the same images, which answers with the base's features, too; and the name of that output."""
WARMUP_FILE = "tf_serving_warmup_requests"
"""File in `assets.extra` in which TensorFlow Serving looks for warm-up requests."""


def write_warmup_requests(folder: Path, *, image_input: ImageInput) -> None:
    """Write one request for each signature, with a gray image, into `folder`."""
    gray = tf.fill(image_input.shape, tf.constant(128, tf.uint8))
    requests = {
        "serving_default": {"image_bytes": tf.make_tensor_proto([tf.io.encode_jpeg(gray).numpy()])},
        # One value and a shape: the proto stays small, because the value is not repeated for each pixel.
        "pixels": {"images": tf.make_tensor_proto(128.0, tf.float32, [1, *image_input.shape])},
    }
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
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

    `assets.extra`, which loaders ignore, gets `transfer.json` and warm-up requests for servers. The JSON has
    `provenance` (the model's origin), the names of the classes, and which of them have no training images. `graph`:
    `merged` merges BatchNorms into the layers before them, `plain` exports them as they were trained. `background`:
    color behind transparent pixels, the same as in training.
    """
    inference = trace_inference(model, graph=graph)
    exported = tf.Module(name="transfer")
    # SavedModel saves only objects that are reachable through attributes of a Module.
    exported.weights, exported.modules = inference.weights, inference.modules
    tf.saved_model.save(exported, str(folder), signatures=_signatures(model, inference, background))
    described = folder / VERSION_DESCRIPTION
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


def _signatures(model: TransferModel, inference: Inference, background: str | None) -> dict[str, Any]:
    """The signatures; each calls the traced network."""
    image_input = model.backbone.image_input
    answer = inference.answer

    def from_image_bytes(image_bytes: tf.Tensor) -> Tensors:
        decoded = tf.TensorSpec(image_input.shape)
        images = tf.map_fn(
            lambda encoded: load_image(encoded, image_input, background), image_bytes, fn_output_signature=decoded
        )
        return named(answer(images))

    def from_pixels(images: tf.Tensor) -> Tensors:
        return named(answer(tf.ensure_shape(fit_image(images, image_input), [None, *image_input.shape])))

    def from_fitted(images: tf.Tensor) -> Tensors:
        return named(answer(images))

    def with_embeddings(images: tf.Tensor) -> Tensors:
        features = inference.embed(images)
        return {**named(inference.classify(features)), EMBEDDINGS: tf.cast(features, tf.float32)}

    def named(probabilities: tf.Tensor) -> Tensors:
        index = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        class_name = tf.gather(tf.constant(model.classes), index)
        return {"probabilities": probabilities, "class_index": index, "class_name": class_name}

    fitted = tf.TensorSpec([None, *image_input.shape], tf.float32, name="images")
    has_vectors = inference.embed.outputs[0].shape.rank == 2
    return {
        "serving_default": traced(from_image_bytes, tf.TensorSpec([None], tf.string, name="image_bytes")),
        "pixels": traced(
            from_pixels, tf.TensorSpec([None, None, None, image_input.channels], tf.float32, name="images")
        ),
        FITTED: traced(from_fitted, fitted),
        **({EMBEDDINGS: traced(with_embeddings, fitted)} if has_vectors else {}),
    }
