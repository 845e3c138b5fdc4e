"""A network in inference as plain TensorFlow operations, and one pass over several of its cuts as one function.

In inference a BatchNorm multiplies each channel by a number and adds another. Behind a linear layer with weights of its
own the product goes into that layer's kernel and the sum into its bias; anywhere else both stay, as one multiply-add.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from transfer.backbone.blocks import Node, nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.features.frozen import FrozenPart
from transfer.runtime.memory import FOR_THE_FROZEN_PART

layers = keras.layers
# Layers that a BatchNorm can be merged into, and their attribute with the kernel that makes the output channels.
_KERNELS = {
    layers.Conv2D: "kernel",
    layers.DepthwiseConv2D: "kernel",
    layers.SeparableConv2D: "pointwise_kernel",
    layers.Dense: "kernel",
}


class InferenceNetwork:
    """From the tensor `start` to the outputs of all `networks`, which lie on one chain, as a function.

    It holds the weights of the moment it is made. Call it while a `tf.function` is traced. Layers that do not compute
    in float32, and layers of any other kind, are called as they are, in inference mode. A SavedModel computes with its
    own variables. Raises ValueError when the tensors do not lie on one chain.

    `merge`: whether BatchNorms are merged, which changes the answers by rounding only.
    """

    def __init__(self, start: Any, networks: Sequence[keras.Model], *, merge: bool = True) -> None:
        self._start = start
        self._outputs = [network.outputs[0] for network in networks]
        self._nodes = _nodes_between(start, networks)
        operations = {id(node.operation): node.operation for node in self._nodes}.values()
        variables = [
            variable
            for operation in operations
            if not isinstance(operation, SavedModelLayer)
            # Not `variables`, among which are counters of random layers.
            for variable in getattr(operation, "weights", [])
        ]
        self._weights = {id(variable): (variable, variable.numpy()) for variable in variables}
        # By the position of a BatchNorm: what is left of it, factor (None is 1) and summand (None is 0).
        self._left: dict[int, tuple[np.ndarray | None, np.ndarray | None]] = {}
        if merge:
            self._merge()

    @property
    def weights(self) -> list[np.ndarray]:
        """The weights that it computes with, but for those of a SavedModel."""
        return [weight for _, weight in self._weights.values()]

    def __call__(self, value: tf.Tensor, weights: Sequence[np.ndarray | tf.Variable] | None = None) -> list[tf.Tensor]:
        """Values of the outputs, for a value of `start`.

        `weights`: variables that hold `self.weights`; default: those arrays, which become constants of the graph.
        """
        values = {id(self._start): value}
        tensors = [tf.convert_to_tensor(weight) for weight in weights or self.weights]
        placed = zip((variable for variable, _ in self._weights.values()), tensors, strict=True)
        with keras.StatelessScope(list(placed)):
            for position, node in enumerate(self._nodes):
                answer = self._run(position, node, values)
                values |= {
                    id(tensor): part for tensor, part in zip(node.outputs, keras.tree.flatten(answer), strict=True)
                }
        return [values[id(output)] for output in self._outputs]

    def _run(self, position: int, node: Node, values: dict[int, Any]) -> Any:
        if position in self._left:
            factor, summand = self._left[position]
            value = values[id(node.inputs[0])]
            value = value if factor is None else value * tf.constant(factor)
            return value if summand is None else value + tf.constant(summand)
        if _is_depthwise(node):
            return _depthwise(node.operation, values[id(node.inputs[0])])
        args, kwargs = node.arguments.fill_in(values)
        if isinstance(node.operation, keras.Layer) and "training" in inspect.signature(node.operation.call).parameters:
            kwargs["training"] = False
        return node.operation(*args, **kwargs)

    def _merge(self) -> None:
        calls = Counter(id(node.operation) for node in self._nodes)
        uses = Counter(id(tensor) for node in self._nodes for tensor in node.inputs)
        uses.update(id(output) for output in self._outputs)
        makers = {id(tensor): node for node in self._nodes for tensor in node.outputs}
        for position, node in enumerate(self._nodes):
            if not _is_plain_batch_norm(node):
                continue
            factor, summand = _affine(node.operation)
            source = node.inputs[0]
            maker = makers.get(id(source))
            # Whoever else sees the layer's output, or its weights, wants them as they were.
            if maker and uses[id(source)] == 1 and calls[id(maker.operation)] == 1 and _takes_factors(maker.operation):
                self._left[position] = (None, self._merge_into(maker.operation, factor, summand))
            else:
                self._left[position] = (factor.astype(np.float32), summand.astype(np.float32))
        for position in self._left:
            for variable in self._nodes[position].operation.variables:
                self._weights.pop(id(variable), None)

    def _merge_into(self, layer: Any, factor: np.ndarray, summand: np.ndarray) -> np.ndarray | None:
        """Change the layer's weights; gives what it has no weights for, to be added to its output."""
        kernel = getattr(layer, _KERNELS[type(layer)])
        # A depthwise kernel is [height, width, channels, multiplier], any other one [..., output channels].
        by_channel = factor.reshape(kernel.shape[2:]) if type(layer) is layers.DepthwiseConv2D else factor
        self._scale(kernel, by_channel)
        if not layer.use_bias:
            return summand.astype(np.float32)
        self._scale(layer.bias, factor, summand)
        return None

    def _scale(self, variable: Any, factor: np.ndarray, summand: np.ndarray | float = 0.0) -> None:
        """In float64, rounded once."""
        _, weight = self._weights[id(variable)]
        self._weights[id(variable)] = (variable, (weight * factor + summand).astype(np.float32))


def _nodes_between(start: Any, networks: Sequence[keras.Model]) -> list[Node]:
    """The calls that lead from `start` to the outputs of all networks, each after all that it depends on."""
    # The output that takes most calls is the last on the chain: the calls before it make all the others.
    order = max((nodes_in_order(network) for network in networks), key=len)
    outputs = [network.outputs[0] for network in networks]
    made = [{id(tensor) for tensor in node.outputs} for node in order]
    first = next((position for position, tensors in enumerate(made) if id(start) in tensors), None)
    if first is None or not {id(output) for output in outputs} <= {id(start)}.union(*made[first:]):
        raise ValueError("the tensors do not lie on one chain")
    return order[first + 1 :]


def _is_plain_batch_norm(node: Node) -> bool:
    """Whether the call is one of a float32 BatchNorm over the last axis."""
    layer = node.operation
    if type(layer) is not layers.BatchNormalization or layer.compute_dtype != "float32":
        return False
    return len(node.inputs) == 1 and layer.axis in {-1, len(node.inputs[0].shape) - 1}


def _takes_factors(layer: Any) -> bool:
    """Whether factors on the layer's output channels can be multiplied into its kernel."""
    return (
        type(layer) in _KERNELS
        and layer.compute_dtype == "float32"
        and layer.activation is keras.activations.linear
        and isinstance(getattr(layer, _KERNELS[type(layer)]), keras.Variable)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
    )


def _is_depthwise(node: Node) -> bool:
    """Whether the call is a convolution of as many groups as there are channels, as in ConvNeXt."""
    layer = node.operation
    return (
        type(layer) is layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.groups == node.inputs[0].shape[-1] > 1
    )


def _depthwise(layer: Any, value: tf.Tensor) -> tf.Tensor:
    """What such a convolution answers. Keras has XLA compute it, which on CPUs takes ten times as long."""
    height, width, _, channels = layer.kernel.shape
    kernel = tf.reshape(layer.kernel.value, (height, width, layer.groups, channels // layer.groups))
    answer = keras.ops.depthwise_conv(value, kernel, layer.strides, layer.padding, None, layer.dilation_rate)
    return layer.activation(answer + layer.bias.value if layer.use_bias else answer)


def _affine(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a BatchNorm multiplies by and adds in inference: float64 [channels] each."""
    mean, variance = (variable.numpy().astype(np.float64) for variable in (layer.moving_mean, layer.moving_variance))
    factor = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        factor = factor * layer.gamma.numpy()
    summand = -mean * factor
    if layer.center:
        summand = summand + layer.beta.numpy()
    return factor, summand


def traced(function: Callable[[tf.Tensor], Any], argument: tf.TensorSpec) -> Any:
    """A concrete function of one argument."""
    # Autograph would first rewrite the source of everything that is called: four times the time.
    return tf.function(function, autograph=False).get_concrete_function(argument)


def with_constants(function: Any) -> Any:
    """A concrete function of one argument with its variables as constants; tables, if it has any, stay tables."""
    if not function.captured_inputs:
        return function
    frozen = convert_variables_to_constants_v2(function)
    names = {tensor.name for tensor in frozen.inputs}
    tables = [handle for handle, inside in function.graph.captures if inside.name in names]
    if not tables:
        return frozen
    (argument,) = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
    return traced(lambda rows: frozen(rows, *tables), tf.TensorSpec(argument.shape, argument.dtype))


class Pass:
    """From pixels, or from cached features of the earlier cut `start`, to the features of all `frozen_parts` at once.

    The frozen parts are cuts of one network. Raises ValueError when they, and `start` before them, are not.
    """

    def __init__(self, frozen_parts: Sequence[FrozenPart], start: FrozenPart | None) -> None:
        first = frozen_parts[0]
        self.row_shape = start.shape if start else first.image_input.shape
        """Shape of the input for one image."""
        self.subject, self.advice = "The frozen part", FOR_THE_FROZEN_PART
        self._frozen_parts = frozen_parts
        self._start = start
        self._entry = start.network.outputs[0] if start else first.network.inputs[0]

    def trace(self) -> Any:
        """A concrete function, float32 [n, *row_shape] to a list of float32 [n, *shape], without variables."""
        network = InferenceNetwork(self._entry, [frozen_part.network for frozen_part in self._frozen_parts])

        def forward(rows: tf.Tensor) -> list[tf.Tensor]:
            return [tf.cast(output, tf.float32) for output in network(self._prepared(rows))]

        rows = tf.TensorSpec([None, *self.row_shape], tf.float32)
        # A SavedModel computes with variables of its own.
        return with_constants(traced(forward, rows))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """The outputs for rows, float32 [n, *row_shape], by calling the Keras network: what faster ways must equal."""
        network = keras.Model(self._entry, [frozen_part.network.outputs[0] for frozen_part in self._frozen_parts])
        outputs = network(self._prepared(tf.constant(rows, tf.float32)), training=False)
        return [tf.cast(output, tf.float32).numpy() for output in keras.tree.flatten(outputs)]

    def _prepared(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(rows, self._entry.dtype) if self._start else self._frozen_parts[0].preprocess(rows)
