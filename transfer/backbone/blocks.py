"""The blocks of a network, as people call them, found in the graph of its nodes.

A node is one call of a layer (or of a bare operation such as `a + b`). A model nested in the network is one layer.

Between two neighbouring cuts, a stretch of the network cannot be divided. Stretches are joined into blocks by the names
of their layers, and without usable names by the shape of the graph:

- stretches whose layers share a block's name, such as `conv4_block3_…` or `block6d_…`, are that block;
- without a name, a stretch with parallel paths is a block, named after its last layer (`mixed7`);
- without a name, in a plain chain, each layer with weights that is not a normalisation starts a block;
- a stretch with only normalisation, activation or pooling belongs to the block before it, or begins the first one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras

from transfer.runtime.keras_private import call_of, inner_layers, own_trainable_variables


@dataclass(frozen=True)
class Node:
    """One call of a layer: the layer, its arguments, and its output tensors."""

    operation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arguments: Any

    @property
    def name(self) -> str:
        """Name of the layer or operation that was called."""
        return str(self.operation.name)

    @property
    def is_input(self) -> bool:
        """Whether this is the input layer of the images."""
        return isinstance(self.operation, keras.layers.InputLayer)

    @property
    def weights(self) -> list[Any]:
        """Variables of the layer; empty for bare operations."""
        return list(getattr(self.operation, "weights", []))


@dataclass(frozen=True)
class Cut:
    """A tensor where the network can be cut: all nodes up to `position` feed it, all later nodes depend only on it."""

    position: int
    tensor: Any


def nodes_in_order(network: keras.Model) -> list[Node]:
    """The nodes of `network` from its input to its output, in topological order.

    The order is depth first along each node's arguments, so it depends only on the graph, not on names of layers or on
    what was built before.
    """
    order: list[Node] = []
    seen: set[int] = set()
    pending = [(call_of(tensor), False) for tensor in reversed(network.outputs)]
    while pending:
        node, inputs_done = pending.pop()
        if inputs_done:
            tensors = tuple(node.arguments.keras_tensors)
            order.append(Node(node.operation, tensors, tuple(node.outputs), node.arguments))
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending.extend((call_of(tensor), False) for tensor in reversed(node.arguments.keras_tensors))
    return order


def has_trainable_weights(network: keras.Model) -> bool:
    """Whether training can change any weight of the network, including layers that are frozen now."""
    return bool(trainable_weights(network))


def trainable_weights(network: keras.Model) -> list[keras.Variable]:
    """The weights that training can change, each once, including those of layers that are frozen now."""
    # A layer may be called twice.
    found = {id(weight): weight for layer in inner_layers(network) for weight in own_trainable_variables(layer)}
    return list(found.values())


def trainable_parameters(network: keras.Model) -> int:
    """Number of parameters that training can change, including layers that are frozen now."""
    return sum(prod(weight.shape) for weight in trainable_weights(network))


def called_on(network: keras.Model, *shapes: tuple[int | None, ...]) -> keras.Model:
    """The same layers, called again on inputs of these shapes (batch first), so that all shapes are as definite."""
    inputs = [
        keras.Input(batch_shape=shape, name=entry.name, dtype=entry.dtype)
        for entry, shape in zip(network.inputs, shapes, strict=True)
    ]
    tensors = inputs if len(inputs) > 1 else inputs[0]
    return keras.models.clone_model(network, input_tensors=tensors, clone_function=lambda layer: layer)


def cut_points(nodes: list[Node], output: Any) -> list[Cut]:
    """All places where the network can be cut, from the input (first) to `output` (last).

    A tensor is a cut if it is the only live tensor: later nodes use nothing else that was computed before. Any order of
    the nodes finds the same cuts, because each node is on a path from the input to the output, and so either before or
    after such a tensor. A layer with weights that is called on both sides would be frozen and trained at once, so there
    is no cut between its calls.
    """
    last_use = {id(tensor): position for position, node in enumerate(nodes) for tensor in node.inputs}
    last_use[id(output)] = len(nodes)
    last_call = {id(node.operation): position for position, node in enumerate(nodes) if node.weights}
    alive: dict[int, Any] = {}
    shared_until = -1
    cuts = []
    for position, node in enumerate(nodes):
        alive |= {id(tensor): tensor for tensor in node.outputs}
        alive = {key: tensor for key, tensor in alive.items() if last_use.get(key, -1) > position}
        shared_until = max(shared_until, last_call.get(id(node.operation), -1))
        if len(alive) == 1 and shared_until <= position:
            cuts.append(Cut(position, next(iter(alive.values()))))
    return cuts


def network_flops(network: keras.Model) -> int:
    """Multiply-adds of a network for one image."""
    return sum(multiply_adds(node) for node in nodes_in_order(network))


def multiply_adds(node: Node) -> int:
    """Multiply-adds of one call of a layer for one image.

    Every weight of a kernel is used once for each position of the output (of the input, in a transposed convolution).
    """
    layer = node.operation
    if isinstance(layer, keras.Model) and layer.inputs:
        # A nested model may accept any image size; here it is called on a definite one.
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
    """Number of positions in a tensor [batch, …, channels], without batch and channels."""
    return int(prod(tensor.shape[1:-1]))


# Patterns of the names of blocks, by family. Longer patterns precede shorter ones that they contain.
BLOCK_NAME = re.compile(
    r"""
      stage_\d+_block_\d+           # ConvNeXt
    | downsampling_block_\d+        # ConvNeXt, between stages
    | conv\d+_block\d+              # ResNet, DenseNet
    | expanded_conv(?:_\d+)?        # MobileNetV3, and MobileNetV2's first
    | block_\d+                     # MobileNetV2
    | block\d+_\d+(?=_)             # InceptionResNetV2
    | block\d+[a-z]?                # VGG, Xception, EfficientNet
    | conv_(?:pad|dw|pw)_\d+        # MobileNet: depthwise and pointwise convolution
    | ^pool\d+(?=_|$)               # DenseNet, between its dense blocks
    """,
    re.VERBOSE,
)
# Layers whose weights only adjust another layer's output. They never begin a block.
ADJUSTING_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.RMSNormalization,
)


@dataclass(frozen=True)
class Block:
    """A part of the network that is frozen or trained as a whole."""

    name: str
    layers: tuple[str, ...]
    parameters: int
    flops: int
    """Multiply-adds for one image.

    Conv2D, DepthwiseConv2D, SeparableConv2D, Conv2DTranspose and Dense count, also inside nested models. Everything
    else counts 0: additions, activations, pooling, normalisation (merged into a convolution for serving), and the
    inside of a SavedModel, which is unknown. """
    output_shape: tuple[int | None, ...]
    """Output shape of the last layer, batch first."""
    feature_bytes: int
    """Size of the output for one image as float32."""


@dataclass
class Stretch:
    """Neighbouring nodes that cannot be divided, up to a cut."""

    nodes: list[Node]
    cut: Cut
    name: str | None = None
    opens: bool = field(init=False)
    """Whether the stretch has trainable weights that do more than adjust another layer's output."""

    def __post_init__(self) -> None:
        self.opens = any(_opens_block(node) for node in self.nodes)

    def append(self, other: Stretch) -> None:
        """Append the following stretch."""
        self.nodes += other.nodes
        self.cut = other.cut
        self.opens = self.opens or other.opens


def group(nodes: list[Node], cuts: list[Cut]) -> list[tuple[Block, Cut]]:
    """The blocks of a network from its input to its output, each with the cut at its end."""
    stretches = _merge(_join_by_name(_indivisible(nodes, cuts)))
    taken: set[str] = set()
    blocks = []
    for stretch in stretches:
        name = stretch.name if stretch.name and stretch.name not in taken else _own_name(stretch)
        taken.add(name)
        blocks.append((_measure(name, stretch), stretch.cut))
    return blocks


def _indivisible(nodes: list[Node], cuts: list[Cut]) -> list[Stretch]:
    stretches = []
    start = 0
    for cut in cuts:
        inside = [node for node in nodes[start : cut.position + 1] if not node.is_input]
        if inside:
            stretches.append(Stretch(inside, cut, _shared_name(inside)))
        start = cut.position + 1
    return stretches


def _shared_name(nodes: list[Node]) -> str | None:
    """The block name that the layers share; without one, the name of the last of several layers, else None."""
    names = {found for node in nodes if (found := _block_name(node.name))}
    if len(names) == 1:
        return names.pop()
    return nodes[-1].name if len(nodes) > 1 else None


def _block_name(layer_name: str) -> str | None:
    found = BLOCK_NAME.search(layer_name)
    return re.sub("_(pad|dw|pw)_", "_", found.group()) if found else None


def _join_by_name(stretches: list[Stretch]) -> list[Stretch]:
    joined: list[Stretch] = []
    for stretch in stretches:
        follows = not stretch.opens if stretch.name is None else bool(joined) and stretch.name == joined[-1].name
        if joined and follows:
            joined[-1].append(stretch)
        else:
            joined.append(stretch)
    return joined


def _merge(stretches: list[Stretch]) -> list[Stretch]:
    """Join stretches that begin no block to the block before them, and a leading one to the block after it."""
    merged: list[Stretch] = []
    for stretch in stretches:
        if merged and not merged[-1].opens:  # only the first can begin no block
            stretch.nodes = merged.pop().nodes + stretch.nodes
        if merged and not stretch.opens:
            merged[-1].append(stretch)
        else:
            merged.append(stretch)
    return merged


def _opens_block(node: Node) -> bool:
    return bool(node.weights) and not isinstance(node.operation, ADJUSTING_LAYERS)


def _own_name(stretch: Stretch) -> str:
    """Name of a stretch without a block name; a chain is named after the layer that begins it."""
    return next((node.name for node in stretch.nodes if _opens_block(node)), stretch.nodes[-1].name)


def _measure(name: str, stretch: Stretch) -> Block:
    layers = tuple(dict.fromkeys(node.name for node in stretch.nodes))
    weights: dict[int, Any] = {id(weight): weight for node in stretch.nodes for weight in node.weights}
    shape = tuple(stretch.cut.tensor.shape)
    return Block(
        name=name,
        layers=layers,
        parameters=sum(prod(weight.shape) for weight in weights.values()),
        flops=sum(multiply_adds(node) for node in stretch.nodes),
        output_shape=shape,
        feature_bytes=4 * prod(shape[1:]),
    )
