"""What `scripts.bench.scale` knows from the networks alone: what is trained at each depth, and what an image leaves.

Every step sums the gradients of all replicas. In a ring of n each one sends, and receives, 2 (n - 1) / n times the
bytes of what is trained (Patarasuk and Yuan, 2009); NCCL may choose a tree, which sends about as much.
"""

from __future__ import annotations

from math import prod
from typing import Any

from transfer.config import BaseNetworkConfig, HeadConfig

FLOAT_BYTES = 4
"""Gradients are summed in float32, with mixed precision, too: variables are float32."""


def measure(networks: list[str], *, classes: int, replicas: int) -> dict[str, list[dict[str, Any]]]:
    """For each network a row for each depth, from the head alone to everything."""
    return {network: depths(network, classes, replicas) for network in networks}


def depths(network: str, classes: int, replicas: int) -> list[dict[str, Any]]:
    from transfer.backbone.describe import describe
    from transfer.backbone.load import load_backbone
    from transfer.backbone.pooling import pooled
    from transfer.training.head import build_head

    backbone = pooled(load_backbone(BaseNetworkConfig(model=network, weights="none")), "average")
    features = tuple(backbone.network.output_shape[1:])
    head = trained(build_head(HeadConfig(), feature_shape=features, class_count=classes, seed=0))
    described = {row["depth"]: row for row in describe(backbone)}
    rows = []
    for depth in range(len(backbone.blocks) + 1):
        _, unfrozen = backbone.cut(depth)
        parameters = head + (trained(unfrozen) if unfrozen else 0)
        rows.append(
            {
                "depth": depth,
                "block": described[depth]["block"] if depth else "head",
                "parameters": parameters,
                "all_reduce_bytes": parameters * FLOAT_BYTES * 2 * (replicas - 1) / replicas,
                "kept_bytes": kept_bytes(described, depth, features),
            }
        )
    return rows


def trained(network: Any) -> int:
    """Parameters that training changes: moving averages of BatchNorms are none of them."""
    return sum(prod(variable.shape) for variable in network.trainable_variables)


def kept_bytes(described: dict[int, dict[str, Any]], depth: int, features: tuple[int, ...]) -> int:
    """Bytes that are kept of an image at this depth: vectors in float32, maps in float16; 0 where nothing is frozen."""
    if depth == 0:
        return prod(features) * FLOAT_BYTES
    return int(described[depth]["kept_bytes"]) // 2
