"""A trained run as one `keras.Model`, which any program with Keras can load, inspect and train further."""

from __future__ import annotations

import keras
import numpy as np

from transfer.augmentation import KeyedDropout
from transfer.backbone.blocks import nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.errors import BackboneError
from transfer.runtime.keras_private import inner_layers
from transfer.training.model import MASKED_LOGIT, MaskedLogits, TransferModel


def standalone_model(model: TransferModel, *, name: str) -> keras.Model:
    """Build one `keras.Model` from pixels to probabilities, with a copy of the weights.

    The model consists of Keras's own layers, so `save` writes a file that loads without this project.

    Args:
        model: The trained model: backbone and head.
        name: String. Name of the new model.

    Returns:
        Model from pixels, float32 [batch, height, width, channels] in 0..255, to probabilities, float32
        [batch, classes].

    Raises:
        BackboneError: The base is a SavedModel, which has no Keras layers, or has layers of keras-hub.
    """
    network = model.backbone.network
    if any(isinstance(node.operation, SavedModelLayer) for node in nodes_in_order(network)):
        raise BackboneError(
            f"The base {model.backbone.name} is a SavedModel, and no network of Keras's layers.",
            advice="Load the published SavedModel with `tf.saved_model.load`, or ask it with `predict`.",
        )
    _refuse_what_others_cannot_load(model)
    pixels = keras.Input(model.backbone.image_input.shape, name="pixels")
    features = _copied(network)(model.backbone.preprocess(pixels))
    probabilities = keras.layers.Softmax(name="probabilities", dtype="float32")(_copied(model.head)(features))
    return keras.Model(pixels, probabilities, name=name)


def _refuse_what_others_cannot_load(model: TransferModel) -> None:
    kinds = {type(layer) for layer in inner_layers(model.backbone.network)}
    if other := sorted(kind.__name__ for kind in kinds if kind.__module__.startswith(("keras_hub.", "transfer."))):
        raise BackboneError(
            f"The base {model.backbone.name} has layers that are not Keras's own: {', '.join(other)}.",
            advice="Load the published SavedModel with `tf.saved_model.load`, or ask it with `predict`.",
        )


def _copied(network: keras.Model) -> keras.Model:
    copied = keras.models.clone_model(network, clone_function=_of_keras)
    copied.set_weights(network.get_weights())
    return copied


def _of_keras(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, KeyedDropout):
        # The two layers are the same in inference. In training Keras's layer draws from a generator of its own.
        return keras.layers.Dropout(layer.rate, name=layer.name)
    if isinstance(layer, MaskedLogits):
        untrained = np.isin(np.arange(layer.output.shape[-1]), layer.untrained)
        scale, offset = np.where(untrained, 0.0, 1.0), np.where(untrained, MASKED_LOGIT, 0.0)
        return keras.layers.Rescaling(scale.tolist(), offset.tolist(), dtype="float32", name=layer.name)
    return type(layer).from_config(layer.get_config())
