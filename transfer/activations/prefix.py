"""The frozen part of a network at a cut: a pure function of the image, and a name for exactly that function."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from transfer.backbone.backbone import Backbone
from transfer.backbone.digest import network_digest
from transfer.backbone.preprocess import Preprocessing
from transfer.config import AugmentationConfig

FEATURE_CODE_VERSION = 1
"""Counted up when decoding, resizing, views or the layout of what is kept change, so that older files are not found."""


@dataclass(frozen=True)
class View:
    """One of the augmented views that are kept of each image."""

    augmentation: AugmentationConfig
    seed: int
    index: int

    def describe(self) -> dict[str, Any]:
        """What decides how this view looks, in JSON's own types."""
        changes = self.augmentation.model_dump(mode="json", exclude={"views"})
        return {"augmentation": changes, "seed": self.seed, "index": self.index}


@dataclass(frozen=True, eq=False)
class Prefix:
    """The frozen part of a network from the image to a cut, and how its output is kept.

    `network` maps preprocessed images to the cut's tensor. `dtype` is what is kept, whatever the network computes in.
    """

    base: str
    """Name of the network, for people."""
    image_size: int
    preprocess: Preprocessing
    network: keras.Model
    dtype: Literal["float32", "float16"] = "float32"
    view: View | None = None
    _network_digests: dict[keras.Model, str] = field(default_factory=dict, repr=False)
    """Shared by all views of a network, so that its weights are hashed once: that can take a second."""

    @property
    def cut(self) -> str:
        """Name of the layer whose output is kept, for people."""
        return str(self.network.outputs[0]._keras_history.operation.name)  # noqa: SLF001 - Keras has no public way

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image."""
        return tuple(self.network.outputs[0].shape[1:])

    @property
    def row_bytes(self) -> int:
        """Bytes that are kept of one image."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Output for images, float32 [batch, image_size, image_size, 3] in 0..255, in the network's own dtype.

        The plain Keras call in inference mode: what faster ways must agree with.
        """
        return self.network(self.preprocess(images), training=False)

    def seen_as(self, view: View | None) -> Prefix:
        """The same part of the network on a view of the images."""
        return self if view == self.view else replace(self, view=view)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides the output: graph, weights, preprocessing, size, dtype, view, code.

        Read when first asked for: weights that are trained afterwards do not change it.
        """
        if self.network not in self._network_digests:
            self._network_digests[self.network] = network_digest(self.network)
        parts = {
            "code": FEATURE_CODE_VERSION,
            "image_size": self.image_size,
            "preprocessing": self.preprocess.name,
            "network": self._network_digests[self.network],
            "dtype": self.dtype,
            "view": self.view.describe() if self.view else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prefix_of(backbone: Backbone, unfreeze: int | str, *, map_dtype: Literal["float32", "float16"]) -> Prefix | None:
    """The frozen part of `backbone` for a phase's `unfreeze`; None when nothing is frozen.

    Vectors are kept in float32, maps in `map_dtype`. Raises BackboneError for a bad depth.
    """
    frozen, _ = backbone.cut(unfreeze)
    if frozen is None:
        return None
    is_vector = len(frozen.outputs[0].shape) == 2
    return Prefix(
        base=backbone.name,
        image_size=backbone.image_size,
        preprocess=backbone.preprocess,
        network=frozen,
        dtype="float32" if is_vector else map_dtype,
    )
