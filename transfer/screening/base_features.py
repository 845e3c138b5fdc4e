"""A network at some cuts: the features of a sample of images, and what computing them takes."""

from __future__ import annotations

import time

import numpy as np

from transfer.backbone.backbone import Backbone, set_precision
from transfer.backbone.blocks import network_flops
from transfer.backbone.random_start import base_for
from transfer.config import Config
from transfer.dataset.batches import stored_images
from transfer.dataset.manifest import Dataset
from transfer.evaluation.sampled import Sample, cached_features, computed_features
from transfer.features.extract import Extractor
from transfer.features.frozen import FrozenPart, frozen_part_of
from transfer.storage import Store

INNER_CUTS = (0.25, 0.5)
"""Shares of a network's blocks that are left out at its end, for features of inner layers."""
TIMED_BATCHES = 2
"""After one that warms up."""


class BaseFeatures:
    """The base of a configuration on a sample of the training split. Raises BackboneError if it cannot be had.

    `parts`: frozen parts by the layer that `base.tap` names; the first one, None, is the whole base.
    """

    def __init__(self, config: Config, store: Store, dataset: Dataset, sample: Sample) -> None:
        self._store, self._dataset, self._sample = store, dataset, sample
        set_precision(config.training.mixed_precision)
        self.parts = parts_of(base_for(config, store, dataset))
        self._extractor = Extractor(store, engine=config.features.engine)

    def features(self) -> list[np.ndarray]:
        """The features of the sample at each cut, averaged over positions: float32 [n, d].

        Those of the whole base are cached if the sample is all of the split, so training finds them.
        """
        whole, *inner = self.parts.values()
        if len(self._sample) == self._dataset.rows("train"):
            self._extractor.extract(self._dataset.shards_of("train"), [whole])
        cached = cached_features(self._store, self._dataset, self._sample, whole)
        missing = inner if cached is not None else [whole, *inner]
        found = [] if cached is None else [cached]
        if missing:
            forward = self._extractor.forward(missing)
            found += computed_features(self._store, self._dataset, self._sample, forward, whole.image_input)
        return found

    def milliseconds(self) -> dict[str | None, float]:
        """Of a forward pass for an image, by cut: measured for all of the base, for inner cuts by multiply-adds."""
        whole = self.parts[None]
        forward = self._extractor.forward([whole])
        images, _ = next(
            stored_images(
                self._store,
                self._dataset.shards_of("train"),
                image_input=whole.image_input,
                batch_size=forward.batch_size,
            )
        )
        list(forward.map([images]))
        started = time.perf_counter()
        list(forward.map([images] * TIMED_BATCHES))
        ms = (time.perf_counter() - started) / (TIMED_BATCHES * len(images)) * 1000
        flops = {tap: network_flops(part.network) for tap, part in self.parts.items()}
        return {tap: ms * flops[tap] / flops[None] if flops[None] else ms for tap in self.parts}


def parts_of(backbone: Backbone) -> dict[str | None, FrozenPart]:
    """The whole base (None), and inner cuts that end in feature maps, by the name of their last layer."""
    whole = frozen_part_of(backbone, 0, map_dtype="float32")
    assert whole is not None  # noqa: S101 - at depth 0 all of the base is frozen
    parts: dict[str | None, FrozenPart] = {None: whole}
    for depth in sorted({round(share * len(backbone.blocks)) for share in INNER_CUTS} - {0, len(backbone.blocks)}):
        inner = frozen_part_of(backbone, depth, map_dtype="float32")
        if inner is not None and len(inner.shape) == 3:
            parts[inner.cut] = inner
    return parts
