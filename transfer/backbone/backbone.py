"""A pretrained network that can be cut in two at its blocks.

Its digest omits names of layers: Keras numbers unnamed layers by what else the process has built, so the digest of the
same network could change. It also omits initialisers and `trainable`, which do not change the outputs.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

import keras
import numpy as np

from transfer.backbone.blocks import (
    Block,
    Cut,
    Node,
    cut_points,
    group,
    has_trainable_weights,
    nodes_in_order,
)
from transfer.backbone.files import Preprocessing, nearest
from transfer.config import ImageInput
from transfer.errors import BackboneError
from transfer.runtime.keras_private import inner_layers

HALF = {"float16", "bfloat16"}


def set_precision(mixed_precision: str) -> None:
    """Set the dtype in which layers compute that are built from now on; variables stay float32."""
    keras.mixed_precision.set_dtype_policy("float32" if mixed_precision == "off" else f"mixed_{mixed_precision}")


def precision() -> str:
    """The precision that `set_precision` set: `off`, `bfloat16` or `float16`."""
    policy = keras.mixed_precision.dtype_policy()
    return str(policy.compute_dtype) if policy.compute_dtype in HALF else "off"


def computes_in_half(network: keras.Model) -> bool:
    """Whether any layer of a network, nested ones too, computes in float16 or bfloat16."""
    # Models and input layers only pass tensors on, whatever their policy is.
    return any(
        layer.compute_dtype in HALF
        for layer in inner_layers(network)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer)
    )


def in_chosen_precision(network: keras.Model) -> keras.Model:
    """The network with the precision of `set_precision` in all layers, and the same weights.

    If nothing differs, the network itself is returned. Raises ValueError for quantised layers, which cannot change.
    """
    config = network.get_config()
    wanted = _with_policy(config, keras.mixed_precision.dtype_policy())
    if wanted == config:
        return network
    # A layer gets its dtype when it is built and passes it to the layers inside, so all layers are built again.
    changed: keras.Model = type(network).from_config(wanted)
    changed.set_weights(network.get_weights())
    return changed


def _with_policy(config: Any, policy: keras.DTypePolicy) -> Any:
    """The configuration of layers, with another policy for all layers that compute in floating point."""
    if isinstance(config, list | tuple):
        return type(config)(_with_policy(value, policy) for value in config)
    if not isinstance(config, dict):
        return config
    kind, inner = config.get("class_name"), config.get("config", {})
    if kind == "DTypePolicy" and "float" in inner["name"]:
        return keras.dtype_policies.serialize(policy)
    if kind == "QuantizedDTypePolicy" and inner["source_name"] != policy.name:
        raise ValueError(
            f"it has layers that are quantised from {inner['source_name']} and cannot become {policy.name}"
        )
    changed = {key: _with_policy(value, policy) for key, value in config.items()}
    if kind == "InputLayer" and keras.backend.is_float_dtype(inner["dtype"]):
        changed["config"]["dtype"] = policy.variable_dtype
    return changed


def pooled(backbone: Backbone, pooling: Literal["average", "max", "flatten"]) -> Backbone:
    """The base with global pooling after its feature map; unchanged if its output is a vector, and for `flatten`.

    The output becomes vectors [batch, channels], which take a fiftieth of the storage of feature maps.
    """
    features = backbone.network.outputs[0]
    if len(features.shape) == 2 or pooling == "flatten":
        return backbone
    layers = keras.layers
    pool = layers.GlobalAveragePooling2D if pooling == "average" else layers.GlobalMaxPooling2D
    network = keras.Model(
        backbone.network.inputs[0], pool(name=f"{pooling}_pooling")(features), name=backbone.network.name
    )
    return Backbone(
        name=backbone.name,
        image_input=backbone.image_input,
        network=network,
        preprocess=backbone.preprocess,
        starts_random=backbone.starts_random,
    )


def _identity(image_input: ImageInput) -> str:
    # Runs of earlier releases have the side alone: their images were squares, stretched.
    if image_input == ImageInput(image_input.height, image_input.height):
        return str(image_input.height)
    return json.dumps(image_input.describe(), sort_keys=True)


class Backbone:
    """A pretrained network, its preprocessing, and its blocks.

    `network` maps preprocessed float32 images [batch, height, width, 3], made as `image_input` says, to features,
    [batch, height, width, channels] or [batch, channels]. `preprocess` maps float32 pixels 0..255
    [batch, height, width, 3] to what `network` expects. `blocks` are ordered from the input to the output.
    `starts_random`: its weights are random, and it has BatchNorms, which are trained by the statistics of batches.
    """

    def __init__(
        self,
        *,
        name: str,
        image_input: ImageInput,
        network: keras.Model,
        preprocess: Preprocessing,
        starts_random: bool = False,
    ) -> None:
        self.name = name
        self.starts_random = starts_random
        self.image_input = image_input
        self.network = network
        self.preprocess = preprocess
        self._nodes = nodes_in_order(network)
        self._cuts = cut_points(self._nodes, network.outputs[0])
        grouped = group(self._nodes, self._cuts)
        self.blocks: tuple[Block, ...] = tuple(block for block, _ in grouped)
        self._ends = [end for _, end in grouped]

    def cut(self, unfreeze: int | str) -> tuple[keras.Model | None, keras.Model | None]:
        """Cut the network into its frozen and its unfrozen part for a phase's `unfreeze`. Both share its weights.

        `0` returns (network, None); `"all"`, or the number of blocks, (None, network); for `n` the second part is the
        last n blocks. The name of a layer cuts at the nearest valid place at or before it, the name of a block before
        the block. One part after the other computes exactly what `network` computes. `trainable` of variables is not
        changed. Raises BackboneError if there are fewer blocks, no such layer or block, or nothing to train in the
        second part.
        """
        cut = self._find_cut(unfreeze)
        if cut is not None and cut.tensor is self.network.outputs[0]:
            return self.network, None
        unfrozen = self.network if cut is None else keras.Model(cut.tensor, self.network.outputs[0])
        if not has_trainable_weights(unfrozen):
            raise BackboneError(
                f"unfreeze is {unfreeze!r}, and {self.name} has no weights there that could be trained.",
                advice="Use `unfreeze: 0`, which trains the head alone, or a base with trainable weights. "
                "`transfer inspect` lists the blocks.",
            )
        return None if cut is None else keras.Model(self.network.inputs[0], cut.tensor), unfrozen

    def digest(self) -> str:
        """SHA-256 over the network's graph, configuration and weights, how an image is fitted, and the preprocessing.

        It is the same in every process, and for the same network from another file. It changes with any weight.
        """
        parts = (
            _identity(self.image_input),
            self.preprocess.name,
            network_digest(self.network),
        )
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _find_cut(self, unfreeze: int | str) -> Cut | None:
        """The cut at the end of the frozen part; None if nothing is frozen."""
        if unfreeze == "all":
            return None
        if isinstance(unfreeze, str):
            return self._cut_below(unfreeze)
        if not 0 <= unfreeze <= len(self.blocks):
            raise BackboneError(
                f"unfreeze is {unfreeze} and {self.name} has {len(self.blocks)} blocks.",
                advice=(
                    f"Use 0 to {len(self.blocks)}, or `all`. Blocks end only where a single tensor carries everything; "
                    "`transfer inspect` lists them."
                ),
            )
        frozen = len(self.blocks) - unfreeze
        return self._ends[frozen - 1] if frozen else None

    def _cut_below(self, name: str) -> Cut | None:
        position = self._position_of(name)
        below = [cut for cut in self._cuts if cut.position < position]
        # A cut at the input itself would freeze nothing.
        return below[-1] if below and not self._nodes[below[-1].position].is_input else None

    def _position_of(self, name: str) -> int:
        """Position of a layer's first call, or of a block's first layer. Layers go before blocks of the same name."""
        positions: dict[str, int] = {}
        for position, node in enumerate(self._nodes):
            positions.setdefault(node.name, position)
        for block in self.blocks:
            positions.setdefault(block.name, min(positions[layer] for layer in block.layers))
        if name not in positions:
            raise BackboneError(
                f"unfreeze is {name!r} and {self.name} has no layer or block of that name.",
                advice=f"Use a number of blocks, `all`, or a name that `transfer inspect` lists."
                f"{nearest(name, positions)}",
            )
        return positions[name]


def network_digest(network: keras.Model) -> str:
    """SHA-256 of a functional network, or of one part of a cut network, as 64 hexadecimal digits.

    It is equal for two networks with the same graph and the same weights, whatever their names, in any process.
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
    """The arguments of a layer's call: tensors by the node that made them, other values unchanged."""

    def replaced(argument: Any) -> Any:
        return tensors[id(argument)] if isinstance(argument, keras.KerasTensor) else argument

    return keras.tree.map_structure(replaced, [node.arguments.args, node.arguments.kwargs])


def _without_names(config: Any) -> Any:
    if isinstance(config, list | tuple):
        return [_without_names(value) for value in config]
    if not isinstance(config, dict):
        return config
    # The name of a dtype policy must stay. Only the configuration of a layer has both of these keys.
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
    """Constants of bare operations (`x[:, 1:]`, `x * scale`): arrays by value, other objects without their address."""
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
