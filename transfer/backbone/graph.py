"""The graph of a functional network: its nodes in order, and the tensors at which it can be cut in two.

A node is one call of a layer (or of a bare operation such as `a + b`). A model nested in the network is one layer.
Keras gives no public way to walk the calls, or the layers inside layers, so this module is the one place that reads
its `_keras_history` and the like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class Node:
    """One call of a layer: who was called, on which tensors, and what came out."""

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
        """Whether this is where images enter the network."""
        return isinstance(self.operation, keras.layers.InputLayer)

    @property
    def weights(self) -> list[Any]:
        """Variables of the layer; empty for bare operations."""
        return list(getattr(self.operation, "weights", []))


@dataclass(frozen=True)
class Cut:
    """A tensor that carries everything: all nodes up to `position` feed it, all later ones depend on nothing else."""

    position: int
    tensor: Any


def nodes_in_order(network: keras.Model) -> list[Node]:
    """The nodes of `network` from its input to its output, each after all that it depends on.

    The order is depth first along each node's arguments, so it depends on the graph alone and not on the names of
    layers or on what was built before.
    """
    order: list[Node] = []
    seen: set[int] = set()
    pending = [(_keras_node(tensor), False) for tensor in reversed(network.outputs)]
    while pending:
        node, inputs_done = pending.pop()
        if inputs_done:
            tensors = tuple(node.arguments.keras_tensors)
            order.append(Node(node.operation, tensors, tuple(node.outputs), node.arguments))
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending.extend((_keras_node(tensor), False) for tensor in reversed(node.arguments.keras_tensors))
    return order


def _keras_node(tensor: Any) -> Any:
    history = tensor._keras_history  # noqa: SLF001 - see the module's docstring
    return history.operation._inbound_nodes[history.node_index]  # noqa: SLF001


def inner_layers(network: keras.Model) -> list[keras.layers.Layer]:
    """All layers of a network, those inside nested models and inside other layers too."""
    return list(network._flatten_layers(include_self=False))  # noqa: SLF001 - see the module's docstring


def has_trainable_weights(network: keras.Model) -> bool:
    """Whether training could change any weight of the network, also where layers are marked as frozen now."""
    return any(layer._trainable_variables for layer in inner_layers(network))  # noqa: SLF001


def has_batch_norms(network: keras.Model) -> bool:
    """Whether a BatchNorm is in the network, those inside nested models included."""
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in inner_layers(network))


def called_on(network: keras.Model, *shapes: tuple[int | None, ...]) -> keras.Model:
    """The same layers, called again on inputs of other shapes (batch first): all shapes are then as known as these."""
    inputs = [
        keras.Input(batch_shape=shape, name=entry.name, dtype=entry.dtype)
        for entry, shape in zip(network.inputs, shapes, strict=True)
    ]
    tensors = inputs if len(inputs) > 1 else inputs[0]
    return keras.models.clone_model(network, input_tensors=tensors, clone_function=lambda layer: layer)


def cut_points(nodes: list[Node], output: Any) -> list[Cut]:
    """All places where the network can be cut, from the input (first) to `output` (last).

    A tensor is a cut when it is alone alive: everything before it was needed only to make it. Any order of the nodes
    finds the same ones, because each node of the graph lies on a path from the input to the output, and so either
    before or after such a tensor. A layer with weights that is called on both sides would be frozen and trained at
    once, so no cut is made between its calls.
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
