"""Multiply-adds of layers that are made of others, such as a transformer block, counted in the graph of their call."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import tensorflow as tf


def traced_multiply_adds(call: Callable[..., Any], shapes: list[tuple[tuple[int, ...], str]]) -> int:
    """Multiply-adds of `call` on tensors of these shapes (without batch) and dtypes, for one image.

    Products of matrices and convolutions count, so the products inside of attention do: queries by keys, and scores by
    values. Everything else counts 0, and so does a product whose size only its values decide.
    """
    inputs = [tf.TensorSpec((1, *shape), dtype) for shape, dtype in shapes]
    graph = tf.function(call, autograph=False).get_concrete_function(*inputs).graph
    return sum(
        _COUNTED[operation.type](operation)
        for operation in graph.get_operations()
        if operation.type in _COUNTED
        if all(tensor.shape.is_fully_defined() for tensor in [*operation.inputs, *operation.outputs])
    )


def _of_product(operation: Any, transposed: str) -> int:
    left = operation.inputs[0].shape
    summed = left[-2] if operation.get_attr(transposed) else left[-1]
    return int(prod(operation.outputs[0].shape) * summed)


def _of_convolution(operation: Any) -> int:
    # A kernel is [height, width, input channels of a group, output channels]: each weight is used once a position.
    answer = operation.outputs[0].shape
    return int(prod(answer[:-1]) * prod(operation.inputs[1].shape))


def _of_einsum(operation: Any) -> int:
    labels = operation.get_attr("equation").decode().partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for tensor, names in zip(operation.inputs, labels, strict=True):
        sizes |= zip(names, tensor.shape, strict=True)
    return int(prod(sizes.values()))


_COUNTED: dict[str, Callable[[Any], int]] = {
    "MatMul": lambda operation: _of_product(operation, "transpose_a"),
    "BatchMatMulV2": lambda operation: _of_product(operation, "adj_x"),
    "Conv2D": _of_convolution,
    "DepthwiseConv2dNative": _of_convolution,
    "Einsum": _of_einsum,
}
"""By the type of an operation; channels last, as all networks here compute."""
