"""The new layers on top of the base."""

from __future__ import annotations

import keras

from transfer.augmentation.randomness import KeyedDropout
from transfer.config import HeadConfig
from transfer.errors import ConfigError


def build_head(config: HeadConfig, *, feature_shape: tuple[int, ...], class_count: int, seed: int) -> keras.Model:
    """A network from features, [batch, *feature_shape], to logits, float32 [batch, class_count].

    One sigmoid answers a single logit z for class 1; [0, z] has the same probabilities under softmax, so nothing after
    the head needs to know which output was chosen. `seed` decides the initial weights. Raises ConfigError when one
    sigmoid is asked for another number of classes than two.
    """
    if config.output == "sigmoid" and class_count != 2:
        raise ConfigError(
            f"head.output is `sigmoid`, for exactly 2 classes; the dataset has {class_count}.",
            advice="Use `output: softmax`.",
        )
    regularizer = keras.regularizers.L2(config.l2) if config.l2 else None

    def dense(x: keras.KerasTensor, units: int, index: int, **options: object) -> keras.KerasTensor:
        x = KeyedDropout(config.dropout, name=f"dropout_{index}")(x)
        initializer = keras.initializers.GlorotUniform(seed=seed + index)
        return keras.layers.Dense(units, kernel_initializer=initializer, kernel_regularizer=regularizer, **options)(x)

    features = keras.Input(feature_shape, name="features")
    # Average and max pooling belong to the base (`backbone/pooling.py`); a map that is left is flattened.
    x = features if len(feature_shape) == 1 else keras.layers.Flatten(name="flatten")(features)
    for index, units in enumerate(config.hidden):
        x = dense(x, units, index, activation="relu", name=f"hidden_{index}")
    outputs = class_count if config.output == "softmax" else 1
    x = dense(x, outputs, len(config.hidden), name="logits")
    x = keras.layers.Activation("linear", dtype="float32", name="logits_float32")(x)
    if config.output == "sigmoid":
        x = keras.layers.Concatenate(name="two_logits")([keras.ops.zeros_like(x), x])
    return keras.Model(features, x, name="head")
