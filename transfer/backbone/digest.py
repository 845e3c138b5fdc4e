"""What a network computes, as one SHA-256: its graph, its layers' configuration and its weights.

Names of layers are left out: Keras numbers unnamed layers by what else the process has built, so the same network
could get another digest tomorrow. Initialisers and `trainable` are left out too, for they do not change what the
network answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import keras
import numpy as np

from transfer.backbone.graph import Node, nodes_in_order


def network_digest(network: keras.Model) -> str:
    """SHA-256 of a functional network, or of either half that a cut made of it, as 64 hexadecimal digits.

    Equal for two networks that compute the same from the same weights, whatever they are called, in any process.
    """
    digest = hashlib.sha256()
    _add_network(digest, network)
    return digest.hexdigest()


def _add_network(digest: hashlib._Hash, network: keras.Model) -> None:
    nodes = nodes_in_order(network)
    tensors = {id(tensor): f"{i}:{k}" for i, node in enumerate(nodes) for k, tensor in enumerate(node.outputs)}
    first_call: dict[int, int] = {}
    for position, node in enumerate(nodes):
        called_before_at = first_call.setdefault(id(node.operation), position)
        digest.update(_canonical([called_before_at, _arguments(node, tensors)]))
        if called_before_at == position:
            _add_operation(digest, node)
    digest.update(_canonical([tensors[id(tensor)] for tensor in network.outputs]))


def _add_operation(digest: hashlib._Hash, node: Node) -> None:
    operation = node.operation
    if isinstance(operation, keras.Model) and operation.inputs:
        _add_network(digest, operation)
        return
    digest.update(_canonical([type(operation).__name__, _without_names(operation.get_config())]))
    for weight in node.weights:
        value = np.ascontiguousarray(weight.numpy())
        digest.update(_canonical([list(value.shape), str(weight.dtype)]))
        digest.update(value.tobytes())


def _arguments(node: Node, tensors: dict[int, str]) -> Any:
    """What the layer was called on: tensors by where they come from, anything else as it is."""

    def replaced(argument: Any) -> Any:
        return tensors[id(argument)] if isinstance(argument, keras.KerasTensor) else argument

    return keras.tree.map_structure(replaced, [node.arguments.args, node.arguments.kwargs])


def _without_names(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return [_without_names(value) for value in config]
    if not isinstance(config, dict):
        return config
    # A dtype policy has a name that matters; only the configuration of a layer has both of these.
    dropped = {"name", "trainable"} if {"name", "trainable"} <= config.keys() else set()
    if config.keys() & {"batch_shape", "batch_input_shape"}:
        dropped = {"name"}
    return {
        key: _without_names(value)
        for key, value in config.items()
        if key not in dropped and not key.endswith("_initializer")
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Constants of bare operations (`x[:, 1:]`, `x * scale`): arrays by value, the rest without its address."""
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
