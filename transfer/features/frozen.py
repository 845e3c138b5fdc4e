"""The frozen part of a network at a cut: a pure function of the image, and a name for exactly that function."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from transfer.backbone.backbone import Backbone, network_digest
from transfer.backbone.files import Preprocessing
from transfer.config import AugmentationConfig, Config, Decides, ImageInput, deciding
from transfer.features.layout import Request
from transfer.runtime.keras_private import call_of

FEATURE_CODE_VERSION = 2
"""Counted up when decoding, resizing, views or the files' layout change, so that older files are not found."""


@dataclass(frozen=True)
class View:
    """One of the augmented views of each image whose features are cached."""

    augmentation: AugmentationConfig
    seed: int
    index: int

    def describe(self) -> dict[str, Any]:
        """What decides how this view looks, in JSON's own types."""
        changes = deciding(self.augmentation, Decides.FEATURES)
        return {"augmentation": changes, "seed": self.seed, "index": self.index}


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """The frozen part of a network from the image to a cut, and how its output, the features, is cached.

    `network` maps preprocessed images to the cut's tensor. `dtype` is the type in the cache, whatever the network
    computes in.
    """

    base: str
    """Name of the network, for people."""
    image_input: ImageInput
    preprocess: Preprocessing
    network: keras.Model
    dtype: Literal["float32", "float16"] = "float32"
    view: View | None = None
    _network_digests: dict[keras.Model, str] = field(default_factory=dict, repr=False)
    """Shared by all views of a network, so that its weights are hashed once: that can take a second."""

    @property
    def cut(self) -> str:
        """Name of the last frozen layer, for people."""
        return str(call_of(self.network.outputs[0]).operation.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one image."""
        return tuple(self.network.outputs[0].shape[1:])

    @property
    def description(self) -> dict[str, Any]:
        """What `frozen_part.json` says of it, for people and for whoever has no network."""
        return {
            "base": self.base,
            "image_input": self.image_input.describe(),
            "preprocessing": self.preprocess.name,
            "cut": self.cut,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "view": self.view.describe() if self.view else None,
        }

    @property
    def row_bytes(self) -> int:
        """Bytes of the cached features of one image."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Output for images, float32 [batch, height, width, 3] in 0..255, in the network's own dtype.

        The plain Keras call in inference mode: what faster ways must agree with.
        """
        return self.network(self.preprocess(images), training=False)

    def seen_as(self, view: View | None) -> FrozenPart:
        """The same part of the network on a view of the images."""
        return self if view == self.view else replace(self, view=view)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that decides the output: graph, weights, preprocessing, size and fit, dtype, view, code.

        Read when first asked for: weights that are trained afterwards do not change it.
        """
        if self.network not in self._network_digests:
            self._network_digests[self.network] = network_digest(self.network)
        parts = {
            "code": FEATURE_CODE_VERSION,
            "image_input": self.image_input.describe(),
            "preprocessing": self.preprocess.name,
            "network": self._network_digests[self.network],
            "dtype": self.dtype,
            "view": self.view.describe() if self.view else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def frozen_part_of(
    backbone: Backbone, unfreeze: int | str, *, map_dtype: Literal["float32", "float16"]
) -> FrozenPart | None:
    """The frozen part of `backbone` for a phase's `unfreeze`; None when nothing is frozen.

    Vectors are cached in float32, maps in `map_dtype`. Raises BackboneError for a bad depth.
    """
    frozen, _ = backbone.cut(unfreeze)
    if frozen is None:
        return None
    is_vector = len(frozen.outputs[0].shape) == 2
    return FrozenPart(
        base=backbone.name,
        image_input=backbone.image_input,
        preprocess=backbone.preprocess,
        network=frozen,
        dtype="float32" if is_vector else map_dtype,
    )


def frozen_parts_of(config: Config, backbone: Backbone, requests: Iterable[Request]) -> dict[str, list[FrozenPart]]:
    """The frozen parts that are asked for, by the split whose images they see.

    `backbone` ends in pooled features. A request that freezes nothing is left out. Raises BackboneError for a bad
    depth.
    """
    found: dict[str, list[FrozenPart]] = {}
    plain = functools.cache(functools.partial(frozen_part_of, backbone, map_dtype=config.features.map_dtype))
    for request in requests:
        frozen_part = plain(request.unfreeze)
        if frozen_part is not None:
            view = None
            if request.view is not None:
                view = View(config.augmentation, seed=config.training.seed, index=request.view)
            found.setdefault(request.split, []).append(frozen_part.seen_as(view))
    return found
