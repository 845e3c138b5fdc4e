"""Encoders of keras-hub as chains of their layers, so that a network can be cut between these.

Some networks call all of their transformer blocks inside of one layer, the encoder. Calling the same blocks one after
the other is the same network, in which each block is a node of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from transfer.backbone.backbone import computes_in_half
from transfer.backbone.blocks import Node, cut_points, nodes_in_order
from transfer.errors import BackboneError

ROUNDING = {False: 1e-5, True: 2e-2}
"""Largest difference of two ways to compute a network, as a share of its largest output; True: in half precision."""


class Called(keras.layers.Layer):
    """Another layer with further arguments, of whose outputs only the first counts.

    Its output has the shape that the layer's really has, whatever the layer says.
    """

    def __init__(self, layer: keras.layers.Layer, arguments: dict[str, Any] | None = None) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer
        self.arguments = arguments or {}
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The layer's first output."""
        return keras.tree.flatten(self.layer(inputs, **self.arguments))[0]

    def get_config(self) -> dict[str, Any]:
        """The configuration, which has that of the layer inside."""
        inside = {"class_name": type(self.layer).__name__, "config": self.layer.get_config()}
        return {**super().get_config(), "layer": inside, "arguments": self.arguments}


def _without_class(layer: keras.layers.Layer, attribute: str) -> keras.layers.Layer:
    """The layer without a class among its attributes, with which keras-hub 0.32 cannot make its configuration.

    It is used while the layer is built only, and shows in the layer's weights.
    """
    setattr(layer, attribute, None)
    return layer


# By the class of a layer: the layers that do the same one after the other, given the layer and its other arguments.
_STEPS: dict[str, Callable[[Any, dict[str, Any]], list[keras.layers.Layer]]] = {
    "ViTEncoder": lambda encoder, _: [encoder.dropout, *encoder.encoder_layers, encoder.layer_norm],
    # Its blocks also answer None, which Keras accepts of no layer in a graph.
    "DeiTEncoder": lambda encoder, _: [*map(Called, encoder.encoder_layers), encoder.layer_norm],
    "DINOV2Encoder": lambda encoder, _: list(encoder.layers),
    "DINOV3Encoder": lambda encoder, arguments: [Called(layer, arguments) for layer in encoder.layers],
    # keras-hub 0.32 says that it answers a token more than it does.
    "SigLIPVisionEmbedding": lambda embedding, _: [Called(embedding)],
    "PatchEmbedding": lambda embedding, _: [_without_class(embedding, "norm_layer")],
    "SwinTransformerStage": lambda stage, _: [_without_class(stage, "_downsample_cls")],
}
_OF_SIZE_ALONE = {"DINOV3RopePositionEmbedding"}
"""Classes of layers that see nothing of an image but its size, so that their outputs are constants."""


def as_chain(network: keras.Model) -> keras.Model:
    """The network with its encoder, if it has one, as a chain of blocks, with the same weights.

    Raises BackboneError if the chain computes something else, or tensors of other shapes than it says.
    """
    nodes = [node for node in nodes_in_order(network) if not node.is_input]
    chain = network
    if any(type(node.operation).__name__ in _STEPS for node in nodes):
        chain = keras.Model(network.inputs[0], _chained(network.inputs[0], nodes), name=network.name)
    _check(network, chain)
    return chain


def _chained(tensor: Any, nodes: list[Node]) -> Any:
    constants: dict[int, Any] = {}
    image = np.zeros((1, *tensor.shape[1:]), np.float32)
    for node in nodes:
        kind = type(node.operation).__name__
        if kind in _OF_SIZE_ALONE:
            values = map(keras.ops.convert_to_numpy, keras.tree.flatten(node.operation(image)))
            constants.update(zip(map(id, node.outputs), values, strict=True))
            continue
        arguments = keras.tree.map_structure(lambda x: constants.get(id(x), x), node.arguments.kwargs)
        steps: list[Any] = _STEPS[kind](node.operation, arguments) if kind in _STEPS else [node.operation]
        for layer in steps:
            tensor = layer(tensor)
    return tensor


def _check(network: keras.Model, chain: keras.Model) -> None:
    """Compute an image at once and at every cut."""
    shape = tuple(network.inputs[0].shape[1:])
    image = np.random.default_rng(0).uniform(-1.0, 1.0, (1, *shape)).astype(np.float32)
    cuts = [cut.tensor for cut in cut_points(nodes_in_order(chain), chain.outputs[0])]
    at_cuts = keras.Model(chain.inputs[0], cuts)(image, training=False)
    for said, found in zip(cuts, at_cuts, strict=True):
        if tuple(said.shape[1:]) != tuple(found.shape[1:]):
            raise BackboneError(
                f"{network.name} says that a layer answers shape {tuple(said.shape[1:])}, and it answers "
                f"{tuple(found.shape[1:])}, so features could not be cached there.",
                advice="Report it with the name of the preset, and use another base.",
            )
    if chain is network:
        return
    wanted, found = (np.asarray(keras.ops.cast(x, "float32")) for x in (network(image, training=False), at_cuts[-1]))
    limit = ROUNDING[computes_in_half(network)] * np.abs(wanted).max()
    difference = np.abs(wanted - found).max()
    if not difference <= limit:
        raise BackboneError(
            f"{network.name}, computed block by block, answers something else: by {difference:.2g}, and rounding "
            f"explains {limit:.2g}.",
            advice="Report it with the name of the preset and the installed version of keras-hub.",
        )
