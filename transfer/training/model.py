"""A pretrained base with a new head, and where it is cut for a phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation import KeyedDropout
from transfer.backbone.backbone import Backbone
from transfer.backbone.batch_norms import batch_norms_of, statistics_of
from transfer.backbone.blocks import trainable_weights
from transfer.config import Config, HeadConfig, PhaseConfig
from transfer.errors import ConfigError
from transfer.training.lora import Adapter, call_adapted, penalties

MASKED_LOGIT = -1e9
"""Finite, as in Keras's masked softmax, because minus infinity times a target of 0 would be NaN in the loss."""


def build_head(
    config: HeadConfig, *, feature_shape: tuple[int, ...], class_count: int, seed: int, untrained: Sequence[int] = ()
) -> keras.Model:
    """A network from features, [batch, *feature_shape], to logits, float32 [batch, class_count].

    With `output: sigmoid` the last layer has one logit z, that of class 1. The head returns [0, z], which has the same
    probabilities under softmax, so nothing after the head depends on the kind of output. `seed` decides the initial
    weights. `untrained`: indices of classes that the head never predicts. They have weights all the same, with which a
    later head can begin. Raises ConfigError if the output is a sigmoid and there are not two classes.
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
    # Pooling belongs to the base (`backbone/backbone.py`). A feature map, or tokens, here are to be flattened.
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
    """Logits, [..., classes], in which those of `untrained` classes are so low that their probability is exactly 0.

    No gradient of the loss reaches the weights of those classes.
    """
    if not untrained:
        return logits
    return tf.where(np.isin(np.arange(logits.shape[-1]), untrained), MASKED_LOGIT, logits)


def untrained_in(head: keras.Model) -> tuple[int, ...]:
    """Indices of the classes that a head never predicts."""
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
        """The layer's configuration as Keras stores it."""
        return {**super().get_config(), "untrained": self.untrained}


@dataclass(frozen=True)
class CutModel:
    """A model as one phase trains it: its frozen part, which is a pure function of the image, and the rest.

    BatchNorm and dropout of the base run in inference mode in both parts: a few images would replace the statistics of
    the many that a base was pretrained on. Only a base with random weights has nothing to lose: while its unfrozen part
    is trained, its BatchNorms normalise by the batch.
    """

    preprocess: Callable[[tf.Tensor], tf.Tensor]
    frozen: keras.Model | None
    unfrozen: keras.Model | None
    head: keras.Model
    adapters: Sequence[Adapter] = ()
    """Trained instead of the weights of the unfrozen part."""
    normalises_by_batch: bool = False
    """Whether the unfrozen part's BatchNorms train on the statistics of each batch, and store their averages."""

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Output of the frozen part for images, float32 [batch, height, width, channels] in 0..255."""
        inputs = self.preprocess(images)
        return tf.stop_gradient(self.frozen(inputs, training=False)) if self.frozen else inputs

    def logits(self, features: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Logits, float32 [batch, classes], from the frozen part's output."""
        if self.unfrozen and self.adapters:
            inputs = call_adapted(self.unfrozen, features, self.adapters)
        else:
            inputs = self.unfrozen(features, training=False) if self.unfrozen else features
        return self.head(inputs, training=training)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that this phase trains, in a fixed order."""
        unfrozen = self.unfrozen.trainable_variables if self.unfrozen else []
        of_adapters = [variable for adapter in self.adapters for variable in adapter.variables]
        return [*of_adapters, *unfrozen, *self.head.trainable_variables]

    def regularization(self) -> tf.Tensor:
        """Sum of the penalties on the trained weights, a scalar."""
        of_base = [*(self.unfrozen.losses if self.unfrozen else []), *penalties(self.adapters)]
        terms = [tf.cast(penalty, tf.float32) for penalty in (*of_base, *self.head.losses)]
        return tf.add_n(terms) if terms else tf.zeros(())


class TransferModel:
    """The network that is trained: images in, logits out."""

    def __init__(
        self,
        backbone: Backbone,
        head: keras.Model,
        classes: list[str],
        *,
        digest: str,
        adapters: Mapping[int, Sequence[Adapter]] | None = None,
    ) -> None:
        """`digest`: of the backbone as it was pretrained; training may have changed its variables since.

        `adapters`: by number of the phase that trains them.
        """
        self.backbone = backbone
        self.digest = digest
        self.head = head
        self.classes = classes
        self.adapters = adapters or {}

    @property
    def untrained_classes(self) -> list[str]:
        """Names of the classes that the model never predicts, because they had no training images."""
        return [self.classes[index] for index in untrained_in(self.head)]

    def cut(self, unfreeze: int | str, *, adapters: Sequence[Adapter] = ()) -> CutModel:
        """The CutModel of a phase; marks only its layers as trainable. Raises BackboneError for a bad depth.

        `adapters`: those of the phase, which are trained instead of the layers.
        """
        frozen, unfrozen = self.backbone.cut(unfreeze)
        # Layer by layer: of a network that is marked as frozen already, Keras does not pass on that it is to be frozen.
        for layer in self.backbone.network.layers:
            layer.trainable = False
        # The model itself is marked, too: if it were frozen, none of its variables would be trainable.
        for layer in [unfrozen, *unfrozen.layers] if unfrozen and not adapters else []:
            layer.trainable = True
        # Adapters change no statistics.
        by_batch = (
            unfrozen is not None and self.backbone.starts_random and not adapters and bool(batch_norms_of(unfrozen))
        )
        return CutModel(self.backbone.preprocess, frozen, unfrozen, self.head, adapters, normalises_by_batch=by_batch)

    def variables_of(self, phases: Sequence[PhaseConfig]) -> list[keras.Variable]:
        """All variables that the first phases of a run change, each once, in a fixed order: what checkpoints hold.

        Of a base with random weights, the statistics of unfrozen BatchNorms are among them. Does not change which
        layers are marked as trainable. Raises BackboneError for a bad depth.
        """
        cuts = [self.backbone.cut(phase.unfreeze) for phase in phases if phase.lora is None]
        unfrozen = [part for _, part in cuts if part is not None]
        trained = {id(weight) for part in unfrozen for weight in trainable_weights(part)}
        if self.backbone.starts_random:
            trained |= {id(variable) for part in unfrozen for variable in statistics_of(part)}
        return [
            *(variable for adapter in self._adapters_of(range(len(phases))) for variable in adapter.variables),
            *(variable for variable in self.backbone.network.variables if id(variable) in trained),
            *self.head.trainable_variables,
        ]

    def changed_by(self, phases: Sequence[PhaseConfig]) -> list[keras.Variable]:
        """All variables that have another value after the first phases of a run: also kernels, merged with adapters."""
        kernels = [adapter.target.kernel for adapter in self._adapters_of(range(len(phases)))]
        return [*kernels, *self.variables_of(phases)]

    def merge(self, phases: Iterable[int], *, but: Sequence[keras.Variable] = ()) -> None:
        """Put what the adapters of some phases learned into the kernels of the base.

        `but`: variables from a checkpoint. Where a kernel is one of them, its value has the difference already.
        """
        stored = {id(variable) for variable in but}
        for adapter in self._adapters_of(phases):
            if id(adapter.target.kernel) not in stored:
                adapter.merge()

    def _adapters_of(self, phases: Iterable[int]) -> list[Adapter]:
        return [adapter for phase in phases for adapter in self.adapters.get(phase, ())]


def build_head_for(
    backbone: Backbone, config: Config, classes: list[str], *, untrained: Sequence[int] = ()
) -> keras.Model:
    """A new head with initial weights by the seed. Raises ConfigError if its output does not fit the classes."""
    return build_head(
        config.head,
        feature_shape=tuple(backbone.network.output_shape[1:]),
        class_count=len(classes),
        seed=config.training.seed,
        untrained=untrained,
    )
