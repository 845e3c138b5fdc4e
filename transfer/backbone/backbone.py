"""A pretrained network that can be cut in two at its blocks."""

from __future__ import annotations

import hashlib

import keras

from transfer.backbone.blocks import Block, group
from transfer.backbone.digest import network_digest
from transfer.backbone.graph import Cut, cut_points, has_trainable_weights, nodes_in_order
from transfer.backbone.preprocess import Preprocessing
from transfer.backbone.source import nearest
from transfer.errors import BackboneError


class Backbone:
    """A pretrained network, how it sees pixels, and its blocks.

    `network` maps preprocessed float32 images [batch, size, size, 3] to features, [batch, height, width, channels] or
    [batch, channels]. `preprocess` maps float32 pixels 0..255 [batch, size, size, 3] to what `network` expects.
    `blocks` run from the input to the output.
    """

    def __init__(self, *, name: str, image_size: int, network: keras.Model, preprocess: Preprocessing) -> None:
        self.name = name
        self.image_size = image_size
        self.network = network
        self.preprocess = preprocess
        self._nodes = nodes_in_order(network)
        self._cuts = cut_points(self._nodes, network.outputs[0])
        grouped = group(self._nodes, self._cuts)
        self.blocks: tuple[Block, ...] = tuple(block for block, _ in grouped)
        self._ends = [end for _, end in grouped]

    def cut(self, unfreeze: int | str) -> tuple[keras.Model | None, keras.Model | None]:
        """The frozen and the unfrozen part for a phase's `unfreeze`; they share the weights of `network`.

        `0` gives (network, None), `"all"` or the number of blocks (None, network), `n` puts the last n blocks into
        the second part. A layer's name cuts at the nearest valid place at or before it, a block's name before the
        block. One part after the other computes exactly what `network` does. Whether variables are trainable is left
        as it is. Raises BackboneError when there are fewer blocks, no such layer or block, or nothing to train in the
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
        """SHA-256 over the network's graph, configuration and weights, the image size and the preprocessing.

        The same in every process, and for the same network from another file. Changes as soon as a weight does.
        """
        parts = (str(self.image_size), self.preprocess.name, network_digest(self.network))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _find_cut(self, unfreeze: int | str) -> Cut | None:
        """Where the frozen part ends; None when nothing is frozen."""
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
