"""A pretrained base with a new head, and where it is split for a phase."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import tensorflow as tf

from transfer.backbone.backbone import Backbone
from transfer.backbone.load import load_backbone
from transfer.backbone.pooling import pooled
from transfer.config import Config
from transfer.training.head import build_head


@dataclass(frozen=True)
class Split:
    """A model seen from one phase: a frozen prefix, which is a pure function of the image, and the rest.

    BatchNorm and dropout of the base run in inference mode in both parts: batch statistics would differ between
    replicas, and a reloaded model would then predict differently.
    """

    backbone: Backbone
    frozen: keras.Model | None
    unfrozen: keras.Model | None
    head: keras.Model

    def activations(self, images: tf.Tensor) -> tf.Tensor:
        """Output of the frozen prefix for images, float32 [batch, image_size, image_size, 3] in 0..255."""
        inputs = self.backbone.preprocess(images)
        return tf.stop_gradient(self.frozen(inputs, training=False)) if self.frozen else inputs

    def logits(self, activations: tf.Tensor, *, training: bool) -> tf.Tensor:
        """Logits, float32 [batch, classes], from the frozen prefix's output."""
        features = self.unfrozen(activations, training=False) if self.unfrozen else activations
        return self.head(features, training=training)

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

    def split(self, unfreeze: int | str) -> Split:
        """Split for a phase, and mark just the phase's layers as trainable. Raises BackboneError for a bad depth."""
        frozen, unfrozen = self.backbone.cut(unfreeze)
        self.backbone.network.trainable = False
        # A model that is marked as frozen itself has no trainable variables, whatever its layers say.
        for layer in [unfrozen, *unfrozen.layers] if unfrozen else []:
            layer.trainable = True
        return Split(self.backbone, frozen, unfrozen, self.head)

    def variables_of(self, depths: list[int | str]) -> list[keras.Variable]:
        """Everything that phases with these unfreeze depths would train, in a fixed order without repeats."""
        found: dict[int, keras.Variable] = {}
        for depth in depths:
            found.update({id(variable): variable for variable in self.split(depth).variables})
        trained = set(found)
        return [v for v in [*self.backbone.network.variables, *self.head.variables] if id(v) in trained]


def build_model(config: Config, classes: list[str]) -> TransferModel:
    """The base with its pretrained weights and a new head. Call it within the strategy's scope.

    Raises BackboneError when the base cannot be loaded, ConfigError when the head does not fit the classes.
    """
    backbone = build_backbone(config)
    return TransferModel(backbone, build_head_for(backbone, config, classes), classes, digest=backbone.digest())


def build_backbone(config: Config) -> Backbone:
    """The pretrained base, pooled as the head wants it. Raises BackboneError when it cannot be loaded."""
    return pooled(load_backbone(config.base, storage=config.storage), config.head.pooling)


def build_head_for(backbone: Backbone, config: Config, classes: list[str]) -> keras.Model:
    """A new head, with the first weights that the seed decides. Raises ConfigError when it does not fit the classes."""
    return build_head(
        config.head,
        feature_shape=tuple(backbone.network.output_shape[1:]),
        class_count=len(classes),
        seed=config.training.seed,
    )
