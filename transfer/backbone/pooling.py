"""A base that ends in pooled features: the pooling has no weights, so it is frozen together with what it pools."""

from __future__ import annotations

from typing import Literal

import keras

from transfer.backbone.backbone import Backbone


def pooled(backbone: Backbone, pooling: Literal["average", "max", "flatten"]) -> Backbone:
    """The base with global pooling behind its feature map; as it is where it answers vectors, or for `flatten`.

    Everything after it sees vectors [batch, channels] instead of maps: they are fifty times smaller to keep.
    """
    features = backbone.network.outputs[0]
    if len(features.shape) == 2 or pooling == "flatten":
        return backbone
    layers = keras.layers
    pool = layers.GlobalAveragePooling2D if pooling == "average" else layers.GlobalMaxPooling2D
    network = keras.Model(
        backbone.network.inputs[0], pool(name=f"{pooling}_pooling")(features), name=backbone.network.name
    )
    return Backbone(name=backbone.name, image_size=backbone.image_size, network=network, preprocess=backbone.preprocess)
