import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.replicas import two_replicas
from transfer.backbone.classifier import find_classifier, split_classifier
from transfer.backbone.load import load_backbone, load_classifier
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def load(path, **changes):
    return load_backbone(BaseNetworkConfig(**{"model": str(path), "image_size": 16} | changes))


def ending_in(*end):
    """A small network that is pooled, with further layers behind that."""
    images = x = keras.Input((16, 16, 3))
    for layer in [layers.Conv2D(16, 3, name="features"), layers.GlobalAveragePooling2D(name="pooled"), *end]:
        x = layer(x)
    return keras.Model(images, x)


def dense(units, **options):
    return layers.Dense(units, name="classes", **options)


def head(*inside):
    return keras.Sequential([keras.Input((16,)), *inside], name="head")


CLASSIFIERS = {
    "softmax": lambda: ending_in(dense(5, activation="softmax")),
    "sigmoid of many units": lambda: ending_in(dense(128, activation="sigmoid")),
    "logits": lambda: ending_in(dense(10)),
    "logits of ImageNet": lambda: ending_in(dense(1000)),
    "behind dropout": lambda: ending_in(layers.Dropout(0.5), dense(10)),
    "softmax of its own": lambda: ending_in(dense(64), layers.Softmax()),
    "an activation": lambda: ending_in(dense(64), layers.Activation("softmax"), layers.Identity()),
    "a bare operation": lambda: ending_in(dense(64), keras.ops.softmax),
    "reshaped, with dropout": lambda: ending_in(dense(10), layers.Dropout(0.5), layers.Reshape((10,))),
    "in half precision": lambda: ending_in(dense(10), layers.Activation("linear", dtype="float32")),
    "a nested head": lambda: ending_in(head(layers.Dropout(0.5), dense(5, activation="softmax"))),
    "a nested head with a hidden layer": lambda: ending_in(head(layers.Dense(8, "relu"), dense(5))),
    "a nested softmax": lambda: ending_in(dense(64), keras.Sequential([keras.Input((64,)), layers.Softmax()])),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_is_found_with_the_layer_before_it(kind):
    found = find_classifier(CLASSIFIERS[kind]())
    assert (found.layer, found.before, found.inside) == ("classes", "pooled", None)


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS.keys() - {"sigmoid of many units"}))
def test_a_classifier_is_split_from_its_features_and_answers_as_before(kind):
    network = CLASSIFIERS[kind]()
    features, classifier = split_classifier("the network", network)
    images = tf.random.stateless_uniform((3, 16, 16, 3), seed=(1, 2))
    answers = network(images, training=False).numpy()
    expected = answers if np.allclose(answers.sum(1), 1, atol=1e-5) else tf.nn.softmax(answers)
    found = tf.nn.softmax(classifier(features(images, training=False), training=False))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # A head in a nested model cannot be cut off.
    assert features.output_shape == ((None, 16) if "nested head" not in kind else network.output_shape)


@pytest.mark.parametrize(("activation", "squashed"), [("sigmoid", tf.identity), ("linear", tf.sigmoid)])
def test_one_output_is_the_second_of_two_classes(activation, squashed):
    images = tf.random.stateless_uniform((3, 16, 16, 3), seed=(1, 2))
    network = ending_in(dense(1, activation=activation))
    features, classifier = split_classifier("the network", network)
    probabilities = tf.nn.softmax(classifier(features(images))).numpy()
    np.testing.assert_allclose(probabilities[:, 1:], squashed(network(images)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (CLASSIFIERS["sigmoid of many units"], r"128 shares from 0 to 1 that do not sum to 1"),
        (
            lambda: keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(5, 3)]),
            r"answers shape \(None, 14, 14, 5\)",
        ),
    ],
    ids=["several right at once", "a map"],
)
def test_what_answers_no_single_class_is_refused(network, said):
    made = network()
    with pytest.raises(BackboneError, match=said):
        split_classifier("the network", keras.Model(made.inputs[0], made.outputs[0]))


def test_a_classifier_of_convolutions_is_found():
    images = keras.Input((16, 16, 3))
    features = layers.Conv2D(16, 16, name="features")(images)
    answers = layers.Flatten()(layers.Conv2D(10, 1, name="classes")(features))
    assert find_classifier(keras.Model(images, answers)).before == "features"


def weigh(features):
    return layers.Multiply()([features, layers.Dense(16, activation="sigmoid")(features)])


FEATURES = {
    "a feature map": lambda: ending_in(layers.Reshape((1, 1, 16)), layers.Conv2D(512, 1, activation="relu")),
    "pooled features of a narrow network": ending_in,
    "a projection": lambda: ending_in(dense(128)),
    "a narrow hidden layer": lambda: ending_in(dense(10, activation="relu")),
    "an embedding": lambda: ending_in(dense(100), layers.UnitNormalization()),
    "features weighed by a sigmoid": lambda: ending_in(weigh),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_features_are_no_classifier(kind):
    assert find_classifier(FEATURES[kind]()) is None


def test_a_classifier_as_the_base_is_refused_unless_it_is_tapped_or_accepted(tmp_path):
    ending_in(dense(5, activation="softmax")).save(tmp_path / "mine.keras")
    with pytest.raises(
        BackboneError, match=r"mine ends in 5 probabilities \(layer `classes`\).*base.tap to `pooled`.*base.accept_head"
    ):
        load(tmp_path / "mine.keras")
    assert load(tmp_path / "mine.keras", tap="pooled").network.output_shape == (None, 16)
    assert load(tmp_path / "mine.keras", accept_head=True).network.output_shape == (None, 5)


def test_inspect_lists_a_classifiers_blocks_and_says_what_to_tap(transfer, tmp_path):
    ending_in(dense(5, activation="softmax")).save(tmp_path / "mine.keras")
    config = tmp_path / "config.yaml"
    base = {"model": str(tmp_path / "mine.keras"), "image_size": 16}
    config.write_text(json.dumps({"name": "n", "storage": "s", "dataset": {"source": "digits"}, "base": base}))
    done = transfer("inspect", config)
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning +mine ends in 5 probabilities .*Set base.tap to `pooled`", done.stdout)
    assert "classes" in done.stdout
    tapped = transfer("inspect", config, "--set", "base.tap=pooled", "--json")
    assert json.loads(tapped.stdout)["warning"] is None


def test_a_classifier_inside_a_nested_network_is_refused_with_how_to_take_it_apart(tmp_path):
    images = keras.Input((16, 16, 3))
    inner = ending_in(dense(5, activation="softmax"))
    keras.Model(images, inner(layers.Rescaling(1 / 255)(images))).save(tmp_path / "nested.keras")
    with pytest.raises(BackboneError, match=rf"nested model `{inner.name}`.*m.get_layer\('pooled'\)"):
        load(tmp_path / "nested.keras")


def save_module(folder, answer):
    module = tf.train.Checkpoint(kernel=tf.Variable(tf.random.stateless_normal((3, 1000), seed=(1, 2))))
    module.__call__ = tf.function(
        lambda images: answer(tf.reduce_mean(images, (1, 2)) @ module.kernel),
        input_signature=[tf.TensorSpec((None, 16, 16, 3))],
    )
    tf.saved_model.save(module, str(folder))
    return folder


MODULES = {
    "logits of ImageNet": (lambda x: x, "1,000 outputs, the number of ImageNet's classes"),
    "probabilities": (lambda x: tf.nn.softmax(x[:, :5]), "5 probabilities"),
    "logits by name": (lambda x: {"logits": x[:, :64], "embedding": x}, "64 logits"),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_saved_model_that_classifies_is_refused(tmp_path, kind):
    answer, found = MODULES[kind]
    folder = save_module(tmp_path / "module", answer)
    # As a worker with two GPUs loads it.
    with two_replicas().scope(), pytest.raises(BackboneError, match=rf"module answers {found}.*`feature_vector`"):
        load(folder)
    assert load(folder, accept_head=True).network


def test_a_saved_model_of_few_features_is_a_base(tmp_path):
    assert load(save_module(tmp_path / "module", lambda x: tf.nn.relu(x[:, :8]))).network.output_shape == (None, 8)


@pytest.mark.parametrize(("units", "said"), [(1, "one number from 0 to 1"), (5, "5 shares from 0 to 1")])
def test_shares_of_a_saved_model_are_not_taken_for_logits(tmp_path, units, said):
    module = load(save_module(tmp_path / "module", lambda x: tf.sigmoid(x[:, :units])), accept_head=True)
    with pytest.raises(BackboneError, match=said):
        split_classifier("the module", module.network)


def test_random_weights_are_no_pretrained_classifier():
    with pytest.raises(BackboneError, match="would classify with random weights"):
        load_classifier(BaseNetworkConfig(model="MobileNetV2", weights="none", image_size=32))
