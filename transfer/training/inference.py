"""A trained model in inference, as one traced function: what is evaluated, and what is exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from transfer.activations.inference import InferenceNetwork
from transfer.backbone.graph import nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.training.model import TransferModel

Graph = Literal["merged", "plain"]

MAX_CONSTANT_BYTES = 64 * 1024**2
"""Up to so many bytes of weights are constants of the graph: a small network then answers one image a quarter sooner.
Those of a larger one are variables, since a protocol buffer, which a saved graph is, holds 2 GiB at most."""


@dataclass(frozen=True)
class Inference:
    """A model with the weights of the moment it was traced. Nothing of Keras is in it."""

    answer: Any
    """A concrete function: images, float32 [batch, size, size, 3] in 0..255, to probabilities [batch, classes]."""
    weights: list[tf.Variable]
    """Those that it computes with. Empty where they are constants."""
    modules: list[Any]
    """Reusable SavedModels in it, with variables, tables and asset files of their own."""


def trace_inference(model: TransferModel, *, graph: Graph) -> Inference:
    """Trace `model`, with BatchNorms merged into the layers before them, or plain, as they were trained."""
    base, head = model.backbone.network, model.head
    parts = [InferenceNetwork(network.inputs[0], [network], merge=graph == "merged") for network in (base, head)]
    weights: list[list[Any]] = [list(part.weights) for part in parts]
    variables: list[tf.Variable] = []
    if sum(weight.nbytes for arrays in weights for weight in arrays) > MAX_CONSTANT_BYTES:
        weights = [[tf.Variable(weight, trainable=False) for weight in arrays] for arrays in weights]
        variables = [variable for held in weights for variable in held]

    def answer(images: tf.Tensor) -> tf.Tensor:
        value = model.backbone.preprocess(images)
        for part, held in zip(parts, weights, strict=True):
            (value,) = part(value, held)
        return tf.nn.softmax(value)

    size = model.backbone.image_size
    layers = {id(node.operation): node.operation for node in nodes_in_order(base)}.values()
    return Inference(
        answer=trace(answer, tf.TensorSpec([None, size, size, 3], tf.float32, name="images")),
        weights=variables,
        modules=[layer._module for layer in layers if isinstance(layer, SavedModelLayer)],  # noqa: SLF001
    )


def trace(function: Any, argument: tf.TensorSpec) -> Any:
    """A concrete function of one argument."""
    # Autograph would first rewrite the source of everything that is called: four times the time.
    return tf.function(function, autograph=False).get_concrete_function(argument)
