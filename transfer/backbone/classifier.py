"""Detection of bases that end in a classifier.

The outputs of a classifier separate its own classes and little else. A model on them works, but is far worse than a
model on the layer before them. So such a base is refused unless the configuration accepts it.

In a Keras network, a final softmax or sigmoid means a classifier. So does a final linear Dense layer whose width looks
like a number of classes (10, 100, 1000, 21843): below 64, or no multiple of 16, unlike usual widths of features (64,
512, 1280). The inside of a SavedModel is unknown, so its outputs are counted, and computed for two images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from transfer.backbone.blocks import Node, nodes_in_order
from transfer.backbone.hub import SavedModelLayer
from transfer.errors import BackboneError, ClassifierBaseError

IMAGENET_CLASSES = {1000, 1001, 21841, 21843}
"""Numbers of classes of ImageNet-1k and ImageNet-21k, each with and without a background class."""
FEWEST_FEATURES = 64
FEATURES_MULTIPLE = 16
PROBABILITY_TOLERANCE = 1e-3
"""Largest distance of a sum of probabilities from 1, as modules in half precision round."""

# Names of a layer's class or of its activation function, in lower case without underscores.
_PROBABILITIES = {"softmax", "sparsemax", "logsoftmax", "sigmoid", "logsigmoid", "hardsigmoid"}
# Layers that do nothing in inference, or only average each channel over the map.
_PASSING_ON = {
    "dropout",
    "spatialdropout2d",
    "alphadropout",
    "gaussiandropout",
    "gaussiannoise",
    "activityregularization",
    "identity",
    "linear",
    "flatten",
    "reshape",
    "squeeze",
    "cast",
}
_POOLING = {"globalaveragepooling2d", "globalmaxpooling2d"}
AnswerKind = Literal["logits", "probabilities", "logit of the second", "share of the second"]
_ACCEPT = "Or set base.accept_head to true, where these outputs are the features that you want."


def refuse_classifier(name: str, network: keras.Model) -> None:
    """Raise ClassifierBaseError if `network`, from a user's file or folder, outputs classes instead of features."""
    last = nodes_in_order(network)[-1].operation
    if isinstance(last, SavedModelLayer):
        _refuse_saved_model(name, last, network)
    elif top := find_classifier(network):
        kind = "probabilities" if top.probabilities else "outputs, as a classifier does"
        raise ClassifierBaseError(
            f"{name} ends in {top.outputs:,} {kind} (layer `{top.layer}`). As features of other images these say "
            "little of what the network sees.",
            advice=f"{_where_to_tap(top)} {_ACCEPT}",
        )


@dataclass(frozen=True)
class Classifier:
    """A classifier at the end of a network."""

    layer: str
    """The layer that computes the logits."""
    outputs: int
    probabilities: bool
    """Whether a softmax or sigmoid follows."""
    before: str | None
    """The layer before the logits, in the network or in the nested model `inside`; None: the input."""
    inside: str | None = None
    """The nested model that contains both layers; None: the network itself."""


def find_classifier(network: keras.Model) -> Classifier | None:
    """The classifier at the end of a functional network; None if it ends in features."""
    nodes = nodes_in_order(network)
    made_by = {id(tensor): node for node in nodes for tensor in node.outputs}
    node = made_by[id(network.outputs[0])]
    kinds: set[str] = set()
    while not node.weights and len(node.inputs) == 1:
        kinds |= _kinds(node)
        node = made_by[id(node.inputs[0])]
    before = _before(node, made_by)
    if isinstance(node.operation, keras.Model) and node.operation.inputs:
        nested = find_classifier(node.operation)
        if nested is None:
            return Classifier(node.name, _width(node), True, before) if kinds & _PROBABILITIES else None
        probabilities = nested.probabilities or bool(kinds & _PROBABILITIES)
        if nested.before is None or any(earlier.weights for earlier in nodes[: nodes.index(node)]):
            # The nested model is only a head, not the whole network.
            return Classifier(nested.layer, nested.outputs, probabilities, before)
        return Classifier(nested.layer, nested.outputs, probabilities, nested.before, nested.inside or node.name)
    probabilities = bool((kinds | _kinds(node)) & _PROBABILITIES)
    if probabilities or _counts_classes(node, kinds):
        return Classifier(node.name, _width(node), probabilities, before)
    return None


def split_classifier(name: str, network: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Cut a network with a classifier: up to the features that the classifier takes, and from these to logits.

    The second part answers logits whose softmax are the probabilities that the network answers: float32 [n, classes].
    One output is the second of two classes. Where the classifier cannot be cut off, the first part is the whole
    network. Raises BackboneError if the outputs are no logits or probabilities of classes of which one is right.
    """
    (answers,) = network.outputs
    if len(answers.shape) != 2 or answers.shape[1] is None:
        raise BackboneError(
            f"{name} answers shape {tuple(answers.shape)}; a classifier answers (batch, classes).",
            advice="Use a network with its classifier. One without is trained: `transfer train`.",
        )
    nodes = nodes_in_order(network)
    top = None if isinstance(nodes[-1].operation, SavedModelLayer) else find_classifier(network)
    features = answers
    if top is not None and top.inside is None:
        cut = [node.inputs[0] for node in nodes if node.name == top.layer and len(node.inputs) == 1]
        features = cut[-1] if cut else answers
    logits = ClassLogits(_kind_of_answers(name, network, top), dtype="float32", name="class_logits")(answers)
    return keras.Model(network.inputs[0], features, name=network.name), keras.Model(features, logits, name="classifier")


def _kind_of_answers(name: str, network: keras.Model, top: Classifier | None) -> AnswerKind:
    outputs, is_squashed = network.output_shape[1], top is not None and top.probabilities
    found = _answers(network)
    is_share = bool(np.all((found >= 0) & (found <= 1)))
    if outputs == 1:
        if is_share and top is None:
            raise BackboneError(
                f"{name} answers one number from 0 to 1, and nothing tells whether it is a share or a logit.",
                advice="Export it with an output for each of its two classes.",
            )
        return "share of the second" if is_squashed and is_share else "logit of the second"
    if _are_probabilities(found):
        return "probabilities"
    if is_share and (is_squashed or top is None):
        raise BackboneError(
            f"{name} answers {outputs:,} shares from 0 to 1 that do not sum to 1, as where several classes may be "
            "right at once.",
            advice="Use a classifier of classes of which one is right: one that ends in a softmax, or in logits.",
        )
    return "logits"


@keras.saving.register_keras_serializable(package="transfer")
class ClassLogits(keras.layers.Layer):
    """Logits, [batch, classes], from what a classifier answers: [batch, classes], or [batch, 1] of two classes."""

    def __init__(self, answers: AnswerKind, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.answers = answers

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The logits, whose softmax are the probabilities."""
        if self.answers == "logits":
            return inputs
        if self.answers == "probabilities":
            return _log(inputs)
        second = inputs if self.answers == "logit of the second" else _log(inputs) - _log(1.0 - inputs)
        return tf.concat([tf.zeros_like(second), second], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Shape of the logits."""
        return (input_shape[0], max(2, input_shape[1] or 0))

    def get_config(self) -> dict[str, Any]:
        """The layer's configuration as Keras stores it."""
        return {**super().get_config(), "answers": self.answers}


def _log(shares: tf.Tensor) -> tf.Tensor:
    """Logarithm; of 0 that of the smallest positive number, so that nothing is infinite."""
    return tf.math.log(tf.maximum(shares, np.finfo(np.float32).tiny))


def _counts_classes(node: Node, behind: set[str]) -> bool:
    """Whether only linear layers follow a layer, and its width looks like a number of classes."""
    convolves = isinstance(node.operation, keras.layers.Conv2D)
    if not convolves and not isinstance(node.operation, keras.layers.Dense):
        return False
    if not _kinds(node) <= {"dense", "conv2d", "linear"} or not behind <= _PASSING_ON | _POOLING:
        return False
    width = _width(node)
    if convolves and any(side != 1 for side in node.inputs[0].shape[1:-1]):
        return width in IMAGENET_CLASSES
    return width < FEWEST_FEATURES or width % FEATURES_MULTIPLE != 0


def _kinds(node: Node) -> set[str]:
    """Names of a layer as in the sets above; for a nested model those of all its layers."""
    operation = node.operation
    if isinstance(operation, keras.Model) and operation.inputs:
        return {kind for inner in nodes_in_order(operation) if not inner.is_input for kind in _kinds(inner)}
    # A layer that only applies a function counts as that function.
    names = [] if isinstance(operation, keras.layers.Activation) else [type(operation).__name__]
    activation = getattr(operation, "activation", None)
    if activation is not None:
        names.append(getattr(activation, "__name__", type(activation).__name__))
    return {name.lower().replace("_", "") for name in names}


def _before(node: Node, made_by: dict[int, Node]) -> str | None:
    """The layer before a layer, without layers that only pass their input on."""
    while len(node.inputs) == 1:
        node = made_by[id(node.inputs[0])]
        if node.is_input:
            return None
        if node.weights or not _kinds(node) <= _PASSING_ON:
            return node.name
    return None


def _width(node: Node) -> int:
    return int(node.outputs[0].shape[-1])


def _where_to_tap(top: Classifier) -> str:
    if top.before is None:
        return "Use a network without its classifier."
    if top.inside is None:
        return f"Set base.tap to `{top.before}`, the last layer before it."
    return (
        f"It is inside the nested model `{top.inside}`, which cannot be tapped. Save what comes before it: "
        f"`keras.Model(m.input, m.get_layer('{top.before}').output).save('features.keras')`, where m is that model."
    )


def _refuse_saved_model(name: str, layer: SavedModelLayer, network: keras.Model) -> None:
    shape = network.outputs[0].shape
    if len(shape) != 2 or shape[1] is None:
        return
    if layer.output_key == "logits":
        found = f"{shape[1]:,} logits"
    elif shape[1] in IMAGENET_CLASSES:
        found = f"{shape[1]:,} outputs, the number of ImageNet's classes"
    elif _are_probabilities(_answers(network)):
        found = f"{shape[1]:,} probabilities"
    else:
        return
    raise ClassifierBaseError(
        f"{name} answers {found}. As features of other images these say little of what the network sees.",
        advice="Use a variant without the classifier: on TF Hub `feature_vector`, not `classification`. " + _ACCEPT,
    )


def _answers(network: keras.Model) -> np.ndarray:
    """The outputs for two images of noise: [2, outputs]."""
    images = tf.random.stateless_uniform((2, *network.input_shape[1:]), seed=(0, 0))
    strategy = tf.distribute.get_strategy()

    @tf.function
    def answer() -> Any:
        # Under a distribution strategy, a module can read its variables only on a replica.
        return strategy.run(lambda: network(images, training=False))

    answers: np.ndarray = strategy.experimental_local_results(answer())[0].numpy()
    return answers


def _are_probabilities(answers: np.ndarray) -> bool:
    sums = np.sum(answers, axis=1, dtype=np.float64)
    return bool(np.all(answers >= 0) and np.allclose(sums, 1.0, rtol=0, atol=PROBABILITY_TOLERANCE))
