"""A trained model in inference mode, as one traced function, which evaluation runs and the export contains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.backbone.backbone import computes_in_half
from transfer.backbone.blocks import nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.config import ServingGraph
from transfer.features.engines import sees_gpu
from transfer.features.network import InferenceNetwork, traced, with_constants
from transfer.runtime.memory import FOR_EVALUATION
from transfer.training.model import TransferModel

MAX_CONSTANT_BYTES = 64 * 1024**2
"""A base whose weights have at most this many bytes has them as constants of the graph: it predicts one image faster.
The weights of a larger base are variables, since a saved graph is a protocol buffer, which holds 2 GiB at most."""


@dataclass(frozen=True)
class Inference:
    """A model with the weights that it had when it was traced. It holds no object of Keras."""

    answer: Any
    """A concrete function: images, float32 [n, height, width, channels] in 0..255, to probabilities [n, classes]."""
    embed: Any
    """A concrete function, the first part of `answer`: images to the base's features, float32 [n, …]."""
    classify: Any
    """A concrete function, the second part: features to probabilities."""
    weights: list[tf.Variable]
    """The weights that `answer` reads as variables; the others are constants of the graph."""
    modules: list[Any]
    """Reusable SavedModels inside of the model, with variables, tables and asset files of their own."""


def trace_inference(model: TransferModel, *, graph: ServingGraph) -> Inference:
    """Trace `model`: `merged` merges BatchNorms into the layers before them, `plain` keeps them as layers."""
    network, merge = model.backbone.network, graph == "merged"
    base, head = (InferenceNetwork(part.inputs[0], [part], merge=merge) for part in (network, model.head))
    weights_of_base: list[Any] = base.weights
    if sum(weight.nbytes for weight in base.weights) > MAX_CONSTANT_BYTES:
        weights_of_base = _variables(base.weights)
    # Always variables, so that a small and a large network have the same names of tensors in the graph.
    weights_of_head = _variables(head.weights)

    def features_of(images: tf.Tensor) -> tf.Tensor:
        (features,) = base(model.backbone.preprocess(images), weights_of_base)
        return features

    def probabilities_of(features: tf.Tensor) -> tf.Tensor:
        (logits,) = head(features, weights_of_head)
        return tf.nn.softmax(logits)

    images = tf.TensorSpec((None, *model.backbone.image_input.shape), tf.float32, name="images")
    embed = traced(features_of, images)
    (features,) = embed.outputs
    classify = traced(probabilities_of, tf.TensorSpec(features.shape, features.dtype, name="features"))
    layers = {id(node.operation): node.operation for node in nodes_in_order(network)}.values()
    return Inference(
        answer=traced(lambda images: classify(embed(images)), images),
        embed=embed,
        classify=classify,
        weights=[weight for weight in (*weights_of_base, *weights_of_head) if isinstance(weight, tf.Variable)],
        modules=[layer.module for layer in layers if isinstance(layer, SavedModelLayer)],
    )


def trace_head(model: TransferModel) -> Any:
    """Trace the head of `model`: features [n, …] to probabilities float32 [n, classes].

    Its weights are those of this moment; other models may use the same variables later.
    """
    (start,) = model.head.inputs
    head = InferenceNetwork(start, [model.head])

    def answer(features: tf.Tensor) -> tf.Tensor:
        (logits,) = head(features)
        return tf.nn.softmax(tf.cast(logits, tf.float32))

    return traced(answer, tf.TensorSpec(start.shape, tf.float32, name="features"))


class InferenceWork:
    """Predicts decoded images with a traced model, as work for a forward pass (`features/forward.py`)."""

    def __init__(self, model: TransferModel, inference: Inference) -> None:
        self.subject, self.advice = "Evaluating", FOR_EVALUATION
        self.row_shape = model.backbone.image_input.shape
        self._inference = inference

    def trace(self) -> Any:
        """The model as a function without variables, images float32 [n, height, width, channels] to [probabilities]."""
        images = tf.TensorSpec([None, *self.row_shape], tf.float32)
        return with_constants(traced(lambda rows: [self._inference.answer(rows)], images))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """The probabilities, computed by the traced model itself."""
        return [self._inference.answer(tf.constant(rows)).numpy()]


def rounds_coarsely(model: TransferModel) -> bool:
    """Whether a model computes in half precision in any layer, or in TF32 on a GPU of this process."""
    in_tf32 = sees_gpu() and tf.config.experimental.tensor_float_32_execution_enabled()
    return in_tf32 or computes_in_half(model.backbone.network) or computes_in_half(model.head)


def _variables(weights: list[np.ndarray]) -> list[tf.Variable]:
    return [tf.Variable(weight, trainable=False) for weight in weights]
