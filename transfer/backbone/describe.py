"""The blocks of a network as plain rows, for `transfer inspect`."""

from __future__ import annotations

from typing import Any

from transfer.backbone.backbone import Backbone


def describe(backbone: Backbone) -> list[dict[str, Any]]:
    """One row a block, from the input to the output, of JSON's own types.

    depth: the `unfreeze` that trains this block and all above it. block: its name. layers: names, in order.
    parameters. flops: multiply-adds for one image (which layers count: `flops.py`). flops_share: of the whole
    network. trained_flops_share: of the part that would be trained. output_shape: for one image.
    activation_bytes: of the block's output for one image, as float32. kept_bytes: of what is kept for one image when
    this depth is trained, which is the output of the block before; 0 where nothing is frozen and so nothing is kept.
    """
    total = sum(block.flops for block in backbone.blocks)
    rows: list[dict[str, Any]] = []
    below = kept_bytes = 0
    for index, block in enumerate(backbone.blocks):
        rows.append(
            {
                "depth": len(backbone.blocks) - index,
                "block": block.name,
                "layers": list(block.layers),
                "parameters": block.parameters,
                "flops": block.flops,
                "flops_share": block.flops / total if total else 0.0,
                "trained_flops_share": (total - below) / total if total else 0.0,
                "output_shape": list(block.output_shape[1:]),
                "activation_bytes": block.activation_bytes,
                "kept_bytes": kept_bytes,
            }
        )
        below += block.flops
        kept_bytes = block.activation_bytes
    return rows
