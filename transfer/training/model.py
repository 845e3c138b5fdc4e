"""A pretrained base with a new head, and where it is cut for a phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation import KeyedDropout
from transfer.backbone.backbone import Backbone
from transfer.backbone.blocks import trainable_weights
from transfer.config import Config, HeadConfig
from transfer.errors import ConfigError

MASKED_LOGIT = -1e9
"""Finite, as Keras masks a softmax: minus infinity times a target of 0 is NaN in the loss."""


def build_head(
    config: HeadConfig, *, feature_shape: tuple[int, ...], class_count: int, seed: int, untrained: Sequence[int] = ()
) -> keras.Model:
    """A network from features, [batch, *feature_shape], to logits, float32 [batch, class_count].

    One sigmoid answers a single logit z for class 1; [0, z] has the same probabilities under softmax, so nothing after
    the head needs to know which output was chosen. `seed` decides the initial weights. `untrained`: indices of classes
    that are never answered. They have their weights all the same, so that a later head can begin with these. Raises
    ConfigError when one sigmoid is asked for another number of classes than two.
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
    # Average and max pooling belong to the base (`backbone/backbone.py`); a map that is left is flattened.
    x = features if len(feature_shape) == 1 else keras.layers.Flatten(name="flatten")(features)
    for index, units in enumerate(config.hidden):
        x = dense(x, units, index, activation="relu", name=f"hidden_{index}")
    outputs = class_count if config.output == "softmax" else 1
    x = dense(x, outputs, len(config.hidden), name="logits")
    x = keras.layers.Activation("linear", dtype="float32", name="logits_float32")(x)
    if config.output == "sigmoid":
        x = keras.layers.Concatenate(name="two_logits")([keras.ops.zeros_like(x), x])
    if untrained:
        x = MaskedLogits(untrained, dtype="float32", name="masked_logits")(x)
    return keras.Model(features, x, name="head")


def masked(logits: tf.Tensor, untrained: Sequence[int]) -> tf.Tensor:
    """Logits, [..., classes], those of `untrained` classes so low that softmax answers exactly 0.

    No gradient of the loss reaches the weights of those classes.
    """
    if not untrained:
        return logits
    return tf.where(np.isin(np.arange(logits.shape[-1]), untrained), MASKED_LOGIT, logits)


def untrained_in(head: keras.Model) -> tuple[int, ...]:
    """Indices of the classes that a head never answers."""
    last = head.layers[-1]
    return last.untrained if isinstance(last, MaskedLogits) else ()


@keras.saving.register_keras_serializable(package="transfer")
class MaskedLogits(keras.layers.Layer):
    """`masked` as a layer. It has no weights."""

    def __init__(self, untrained: Sequence[int], **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.untrained = tuple(untrained)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The masked logits."""
        return masked(inputs, self.untrained)

    def get_config(self) -> dict[str, object]:
        """What Keras writes down of the layer."""
        return {**super().get_config(), "untrained": self.untrained}


@dataclass(frozen=True)
class CutModel:
    """A model seen from one phase: its frozen part, which is a pure function of the image, and the rest.

    BatchNorm and dropout of the base run in inference mode in both parts: batch statistics would differ between
    replicas, and a reloaded model would then predict differently.
    """

    preprocess: Callable[[tf.Tensor], tf.Tensor]
    frozen: keras.Model | None
    unfrozen: keras.Model | None
    head: keras.Model

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Output of the frozen part for images, float32 [batch, height, width, 3] in 0..255."""
        inputs = self.preprocess(images)
        return tf.stop_gradient(self.frozen(inputs, training=False)) if self.frozen else inputs

    def logits(self, features: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Logits, float32 [batch, classes], from the frozen part's output."""
        inputs = self.unfrozen(features, training=False) if self.unfrozen else features
        return self.head(inputs, training=training)

    @property
    def variables(self) -> list[keras.Variable]:
        """What this phase trains, in a fixed order."""
        unfrozen = self.unfrozen.trainable_variables if self.unfrozen else []
        return [*unfrozen, *self.head.trainable_variables]

    def regularization(self) -> tf.Tensor:
        """Sum of the penalties on the trained weights, a scalar."""
        penalties = [*(self.unfrozen.losses if self.unfrozen else []), *self.head.losses]
        return tf.add_n([tf.cast(penalty, tf.float32) for penalty in penalties]) if penalties else tf.zeros(())


class TransferModel:
    """The network that is trained: images in, logits out."""

    def __init__(self, backbone: Backbone, head: keras.Model, classes: list[str], *, digest: str) -> None:
        """`digest`: of the backbone as it was pretrained. Its variables may hold something else by now."""
        self.backbone = backbone
        self.digest = digest
        self.head = head
        self.classes = classes

    @property
    def untrained_classes(self) -> list[str]:
        """Names of the classes that are never answered, for they had no training images."""
        return [self.classes[index] for index in untrained_in(self.head)]

    def cut(self, unfreeze: int | str) -> CutModel:
        """CutModel for a phase, and mark just the phase's layers as trainable. Raises BackboneError for a bad depth."""
        frozen, unfrozen = self.backbone.cut(unfreeze)
        self.backbone.network.trainable = False
        # A model that is marked as frozen itself has no trainable variables, whatever its layers say.
        for layer in [unfrozen, *unfrozen.layers] if unfrozen else []:
            layer.trainable = True
        return CutModel(self.backbone.preprocess, frozen, unfrozen, self.head)

    def variables_of(self, depths: list[int | str]) -> list[keras.Variable]:
        """Everything that phases with these unfreeze depths would train, in a fixed order without repeats.

        What is marked as trainable stays as it is. Raises BackboneError for a bad depth.
        """
        unfrozen = [part for _, part in map(self.backbone.cut, depths) if part is not None]
        trained = {id(weight) for part in unfrozen for weight in trainable_weights(part)}
        return [*(v for v in self.backbone.network.variables if id(v) in trained), *self.head.trainable_variables]


def build_head_for(
    backbone: Backbone, config: Config, classes: list[str], *, untrained: Sequence[int] = ()
) -> keras.Model:
    """A new head, with the first weights that the seed decides. Raises ConfigError when it does not fit the classes."""
    return build_head(
        config.head,
        feature_shape=tuple(backbone.network.output_shape[1:]),
        class_count=len(classes),
        seed=config.training.seed,
        untrained=untrained,
    )
