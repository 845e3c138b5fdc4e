"""Multiply-adds of one image through a network.

Counted: Conv2D, DepthwiseConv2D, SeparableConv2D, Conv2DTranspose and Dense, also inside nested models. Everything
else counts 0: additions, activations, pooling, normalisation (folded into a convolution when a network is served), and
the inside of a SavedModel, which cannot be seen.
"""

from __future__ import annotations

from math import prod

import keras

from transfer.backbone.graph import Node, called_on, nodes_in_order


def network_flops(network: keras.Model) -> int:
    """Multiply-adds of a network for one image."""
    return sum(multiply_adds(node) for node in nodes_in_order(network))


def multiply_adds(node: Node) -> int:
    """Multiply-adds of one call of a layer for one image.

    Every weight of a kernel is used once for each position of the output (of the input, in a transposed convolution).
    """
    layer = node.operation
    if isinstance(layer, keras.Model) and layer.inputs:
        # A nested model may be open to any image size, and is called on one here.
        is_open = any(None in entry.shape[1:] for entry in layer.inputs)
        return network_flops(called_on(layer, *(tensor.shape for tensor in node.inputs)) if is_open else layer)
    if isinstance(layer, keras.layers.SeparableConv2D):
        return _positions(node.outputs[0]) * (_size(layer.depthwise_kernel) + _size(layer.pointwise_kernel))
    if isinstance(layer, keras.layers.Conv2DTranspose):
        return _positions(node.inputs[0]) * _size(layer.kernel)
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
        return _positions(node.outputs[0]) * _size(layer.kernel)
    return 0


def _size(kernel: keras.Variable) -> int:
    return int(prod(kernel.shape))


def _positions(tensor: keras.KerasTensor) -> int:
    """Places of a tensor [batch, …, channels]: all but the batch and the channels."""
    return int(prod(tensor.shape[1:-1]))
