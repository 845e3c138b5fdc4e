"""Blocks as people call them: a residual block, an inception module, VGG's block5.

Between two neighbouring cuts (see `graph.py`) a stretch of the network cannot be divided. Such stretches are put
together by the names that authors gave their layers, and where names say nothing, by the shape of the graph:

- stretches whose layers share a block's name, such as `conv4_block3_…` or `block6d_…`, are that block;
- without a name, a stretch with parallel paths is a block, named after its last layer (`mixed7`);
- without a name, in a plain chain, each layer with weights that is not a normalisation starts a block;
- what holds only normalisation, activation or pooling belongs to the block before it, or opens the first one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

import keras

from transfer.backbone.flops import multiply_adds
from transfer.backbone.graph import Cut, Node

# How the families name blocks. Longer forms stand before the shorter ones that they contain.
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
# Layers whose weights adjust another layer's output; they never open a block.
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
    """Multiply-adds for one image; `flops.py` says which layers count."""
    output_shape: tuple[int | None, ...]
    """Of its last layer, batch first."""
    activation_bytes: int
    """Size of the output for one image as float32."""


@dataclass
class Stretch:
    """Neighbouring nodes that are kept together, ending in a cut."""

    nodes: list[Node]
    cut: Cut
    name: str | None = None
    opens: bool = field(init=False)
    """Whether it has weights of its own to train, beyond adjusting another layer's output."""

    def __post_init__(self) -> None:
        self.opens = any(_opens_block(node) for node in self.nodes)

    def append(self, other: Stretch) -> None:
        """Take in the stretch that follows."""
        self.nodes += other.nodes
        self.cut = other.cut
        self.opens = self.opens or other.opens


def group(nodes: list[Node], cuts: list[Cut]) -> list[tuple[Block, Cut]]:
    """The blocks of a network from its input to its output, each with the cut at its end."""
    stretches = _fold(_join_by_name(_indivisible(nodes, cuts)))
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
    """The block's name that the layers agree on; where several are mixed, none of them fits."""
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


def _fold(stretches: list[Stretch]) -> list[Stretch]:
    """Give stretches that open no block to the block before them, and a leading one to the block after it."""
    folded: list[Stretch] = []
    for stretch in stretches:
        if folded and not folded[-1].opens:  # only the first can be like this
            stretch.nodes = folded.pop().nodes + stretch.nodes
        if folded and not stretch.opens:
            folded[-1].append(stretch)
        else:
            folded.append(stretch)
    return folded


def _opens_block(node: Node) -> bool:
    return bool(node.weights) and not isinstance(node.operation, ADJUSTING_LAYERS)


def _own_name(stretch: Stretch) -> str:
    """A chain is named after the layer that opens it."""
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
        activation_bytes=4 * prod(shape[1:]),
    )
