"""Whether a phase trains on cached features or computes them again in every epoch, by a rule on sizes.

Features that are smaller than the encoded image are cached: an epoch from pixels reads more bytes, before it has
decoded any. Of larger ones, reading a byte takes as long as some multiply-adds. So a map near the image is computed
again: the frozen part is cheap there, and its output many times larger than the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pydantic import BaseModel, ConfigDict

from transfer.backbone.blocks import network_flops
from transfer.dataset.manifest import Shard
from transfer.features.engines import sees_gpu
from transfer.features.frozen import FrozenPart
from transfer.runtime.numbers import size

MULTIPLY_ADDS_A_BYTE = 250
"""Fewest for which features are cached: 10 epochs at 94 billion a second (MobileNetV2 on 2 cores), with storage that
takes 100 MB/s and gives 500 MB/s, where caching may cost 1.25 times as much since later runs read the features, too."""
GPU_MULTIPLY_ADDS_A_BYTE = 25_000
"""The same at 10 trillion a second: a guess."""


class CacheChoice(BaseModel):
    """How a phase gets its features, and why."""

    model_config = ConfigDict(frozen=True)

    cached: bool
    reason: str

    @property
    def explained(self) -> str:
        """One sentence for people."""
        return f"{'on cached features' if self.cached else 'from pixels'}: {self.reason}."


def choose_caching(frozen_part: FrozenPart, shards: Sequence[Shard]) -> CacheChoice:
    """Cache the features of the images in `shards`, or compute them again in every epoch."""
    if len(frozen_part.shape) == 1:
        # The whole base ran for it. A base of one's own may compute in ways of which the multiply-adds are not known.
        return CacheChoice(cached=True, reason=f"a vector of {prod(frozen_part.shape):,} numbers an image")
    row_bytes = frozen_part.row_bytes
    image_bytes = sum(shard.size_bytes for shard in shards) / sum(shard.rows for shard in shards)
    sizes = f"{size(row_bytes)} an image, and the image itself has {size(image_bytes)}"
    if row_bytes <= image_bytes:
        return CacheChoice(cached=True, reason=sizes)
    found = network_flops(frozen_part.network) / row_bytes
    least = GPU_MULTIPLY_ADDS_A_BYTE if sees_gpu() else MULTIPLY_ADDS_A_BYTE
    compared = f"{found:,.0f} multiply-adds a byte, and from {least:,} on features are cached"
    return CacheChoice(cached=found >= least, reason=f"{sizes}; {compared}")
