"""Whether to keep a frozen part's output or to compute it again in every epoch, decided from what is measured.

For a phase of E epochs over N images, of which M are not kept yet:

    keep      M · (decode + forward + bytes / write) + E · N · bytes / read
    recompute E · N · (decode + forward)

Nothing has to be measured where the output is smaller than the encoded image: then an epoch from pixels reads more
bytes, before it has decoded any. So pooled vectors are kept. Large maps near the image may not be: there the frozen
part is cheap, and its output is many times larger than the image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.activations.forward import Forward
from transfer.activations.prefix import Prefix
from transfer.dataset.decode import load_image
from transfer.dataset.manifest import Shard
from transfer.dataset.shards import read_shard
from transfer.storage import Store, throughput

REUSE = 1.25
"""How much dearer keeping may be than recomputing: what is kept also serves the next trial and the next night."""
SAMPLE_IMAGES = 8


class Rates(BaseModel):
    """What was measured on this machine, with this network and this storage."""

    model_config = ConfigDict(frozen=True)

    decode_images_per_s: float
    forward_images_per_s: float
    """Of all frozen parts in one pass."""
    write_bytes_per_s: float
    read_bytes_per_s: float


class Choice(BaseModel):
    """How a phase gets the frozen part's output, and why."""

    model_config = ConfigDict(frozen=True)

    kept: bool
    reason: str
    rates: Rates | None = None
    """None where nothing had to be measured."""

    @property
    def explained(self) -> str:
        """One sentence for people."""
        return f"{'on what is kept of its frozen part' if self.kept else 'from pixels'}: {self.reason}."


def smaller_than_images(row_bytes: int, shards: Sequence[Shard]) -> Choice | None:
    """Keep, without measuring, what is smaller than the encoded images: an epoch from pixels reads more than that.

    None where it is larger.
    """
    image_bytes = sum(shard.size_bytes for shard in shards) / sum(shard.rows for shard in shards)
    if row_bytes > image_bytes:
        return None
    return Choice(kept=True, reason=f"{_size(row_bytes)} an image, and the image itself has {_size(image_bytes)}")


def choose(*, rates: Rates, row_bytes: int, flops_share: float, images: int, missing: int, epochs: int) -> Choice:
    """Keep or recompute, by the formulas above. `flops_share`: of this frozen part in the pass that was measured."""
    compute_s = 1 / rates.decode_images_per_s + flops_share / rates.forward_images_per_s
    keep_s = missing * (compute_s + row_bytes / rates.write_bytes_per_s)
    keep_s += epochs * images * row_bytes / rates.read_bytes_per_s
    recompute_s = epochs * images * compute_s
    kept = keep_s <= REUSE * recompute_s
    comparison = (
        f"{_size(images * row_bytes)} for {images:,} images, about {keep_s:,.1f} s to keep and "
        f"{recompute_s:,.1f} s to compute in each of {epochs} epochs"
    )
    return Choice(kept=kept, reason=comparison, rates=rates)


def measure(store: Store, shard: Shard, forward: Forward, prefix: Prefix) -> Rates:
    """Measure decoding, the frozen parts in one pass, and storage, on the first images of a shard."""
    encoded = read_shard(store, shard, columns=["image"])["image"].slice(0, SAMPLE_IMAGES).to_pylist()
    load_image(encoded[0], prefix.image_size)
    started = time.perf_counter()
    images = np.stack([load_image(image, prefix.image_size).numpy() for image in encoded])
    # Decoding runs on all cores in training; one image after the other here.
    decode_s = (time.perf_counter() - started) / len(images) / (os.cpu_count() or 1)
    list(forward.map([images]))
    started = time.perf_counter()
    list(forward.map([images]))
    forward_s = (time.perf_counter() - started) / len(images)
    write, read = throughput(store)
    return Rates(
        decode_images_per_s=1 / decode_s,
        forward_images_per_s=1 / forward_s,
        write_bytes_per_s=write,
        read_bytes_per_s=read,
    )


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} GiB"
