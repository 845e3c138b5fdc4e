import hashlib
import inspect
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from tests.replicas import two_replicas
from transfer.backbone import applications
from transfer.backbone.applications import known_networks
from transfer.backbone.backbone import network_digest
from transfer.backbone.efficientnet_lite import EfficientNetLite0
from transfer.backbone.load import load_backbone, load_classifier
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ALPHA = {"alpha": 0.35}
WEIGHTS_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5"


def config(**changes):
    return BaseNetworkConfig(
        **{"model": "MobileNetV2", "weights": "none", "image_size": 96, "options": ALPHA} | changes
    )


@pytest.fixture
def trained(tmp_path):
    """A network with weights that no seed gives, and its weights in both of Keras's formats."""
    network = keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
    network.weights[0].assign(network.weights[0] + 1.0)
    network.save_weights(tmp_path / "trained.weights.h5")
    with h5py.File(tmp_path / WEIGHTS_FILE, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return network


def assert_same_weights(network, expected):
    for found, wanted in zip(network.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_every_network_of_keras_applications_is_known_and_has_its_preprocessing():
    networks = known_networks()
    assert {"MobileNetV3Large", "ResNet152V2", "NASNetLarge", "ConvNeXtXLarge", "EfficientNetV2S"} <= networks.keys()
    for constructor in set(networks.values()) - {EfficientNetLite0}:
        assert callable(sys.modules[constructor.__module__].preprocess_input)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("MobileNetV2", keras.applications.mobilenet_v2),  # -1..1
        pytest.param("DenseNet121", keras.applications.densenet, marks=pytest.mark.proof),  # per channel
        ("ResNet50", keras.applications.resnet50),  # BGR, centred
        ("EfficientNetB0", keras.applications.efficientnet),  # inside the network
    ],
)
def test_preprocessing_is_that_of_keras_also_inside_a_graph(model, family):
    backbone = load_backbone(BaseNetworkConfig(model=model, weights="none", image_size=32))
    images = tf.random.stateless_uniform((2, 32, 32, 3), seed=(1, 2), maxval=255.0)
    expected = family.preprocess_input(images.numpy().copy())
    # Keras computes in another order on arrays than on tensors: equal to a few float32 roundings of values up to 255.
    np.testing.assert_allclose(tf.function(backbone.preprocess)(images).numpy(), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(backbone.preprocess(images).numpy(), expected, rtol=0, atol=1e-4)


def test_a_network_that_is_told_not_to_preprocess_gets_pixels_in_the_range_it_did_so_for():
    inside, outside = (
        load_backbone(
            BaseNetworkConfig(
                model="MobileNetV3Small", weights="none", image_size=32, options={"include_preprocessing": included}
            )
        )
        for included in (True, False)
    )
    images = tf.random.stateless_uniform((2, 32, 32, 3), seed=(1, 2), maxval=255.0)
    features = [base.network(base.preprocess(images)).numpy() for base in (inside, outside)]
    np.testing.assert_allclose(*features, rtol=0, atol=1e-6)
    assert inside.preprocess.name != outside.preprocess.name


@pytest.mark.parametrize("model", ["ConvNeXtTiny", "EfficientNetV2B0"])
def test_no_range_is_made_up_for_a_network_that_normalises_otherwise(model):
    settings = {"model": model, "weights": "none", "image_size": 32, "options": {"include_preprocessing": False}}
    with pytest.raises(BackboneError, match=r"include_preprocessing off.*set base.preprocessing"):
        load_backbone(BaseNetworkConfig(**settings))


def test_no_other_option_of_keras_changes_what_a_network_expects_of_pixels():
    own = applications.OWN_ARGUMENTS
    options = {name: inspect.signature(network).parameters.keys() - own for name, network in known_networks().items()}
    # A new option has to be looked at: does the network expect other pixels with it?
    assert set().union(*options.values()) == {
        *("alpha", "depth_multiplier", "dropout", "dropout_rate", "minimalistic"),
        applications.INNER_PREPROCESSING,
    }
    preprocessing_inside = {name for name, taken in options.items() if applications.INNER_PREPROCESSING in taken}
    assert preprocessing_inside >= applications.SIGNED_WITHOUT_IT
    assert {known_networks()[name].__module__.rpartition(".")[2] for name in preprocessing_inside} == {
        "convnext",
        "efficientnet_v2",
        "mobilenet_v3",
    }


@pytest.mark.parametrize(("setting", "low", "high"), [("0..255", 0, 255), ("0..1", 0, 1), ("-1..1", -1, 1)])
def test_a_range_replaces_the_preprocessing(setting, low, high):
    backbone = load_backbone(config(preprocessing=setting))
    black_and_white = tf.concat([tf.zeros((1, 96, 96, 3)), tf.fill((1, 96, 96, 3), 255.0)], 0)
    answer = backbone.preprocess(black_and_white).numpy()
    assert (answer[0] == low).all()
    assert (answer[1] == high).all()


def test_another_backend_of_keras_in_the_process_is_refused(monkeypatch):
    monkeypatch.setattr("keras.src.backend.config._BACKEND", "jax")
    with pytest.raises(BackboneError, match=r"imported Keras on the backend 'jax'.*Import `transfer` before"):
        load_backbone(config())


@pytest.mark.proof
def test_layer_names_do_not_depend_on_what_was_built_before():
    first = load_backbone(config(model="InceptionV3", options={}, image_size=75))
    second = load_backbone(config(model="InceptionV3", options={}, image_size=75))
    assert [layer.name for layer in first.network.layers] == [layer.name for layer in second.network.layers]
    assert first.network.layers[1].name == "conv2d"
    assert first.blocks == second.blocks
    assert first.digest() == second.digest()
    assert keras.layers.Conv2D(1, 1).name not in {layer.name for layer in first.network.layers}


def test_imagenet_weights_come_from_the_keras_cache(trained, tmp_path, monkeypatch):
    (tmp_path / "home" / "models").mkdir(parents=True)
    (tmp_path / WEIGHTS_FILE).rename(tmp_path / "home" / "models" / WEIGHTS_FILE)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "home"))
    assert_same_weights(load_backbone(config(weights="imagenet")).network, trained)


def test_a_network_that_is_used_as_it_is_has_the_classifier_of_its_imagenet_weights(tmp_path, monkeypatch):
    trained = keras.applications.MobileNetV2(alpha=0.35, weights=None, input_shape=(96, 96, 3))
    trained.layers[-1].bias.assign(np.linspace(-2, 2, 1000))
    (tmp_path / "models").mkdir()
    with h5py.File(tmp_path / "models" / WEIGHTS_FILE.replace("_no_top", ""), "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, trained)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    backbone, classifier = load_classifier(config(weights="imagenet"))
    images = tf.random.stateless_uniform((2, 96, 96, 3), seed=(1, 2), maxval=255.0)
    seen = backbone.preprocess(images)
    found = tf.nn.softmax(classifier(backbone.network(seen, training=False)))
    np.testing.assert_allclose(found, trained(seen, training=False), rtol=0, atol=1e-6)
    assert backbone.network.output_shape == (None, 1280)


def test_imagenet_weights_are_downloaded_without_a_word_on_stdout(trained, tmp_path, monkeypatch, serve, capsys):
    (tmp_path / "home").mkdir()
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "home"))
    monkeypatch.setattr("keras.src.applications.mobilenet_v2.BASE_WEIGHT_PATH", serve(tmp_path) + "/")
    assert_same_weights(load_backbone(config(weights="imagenet")).network, trained)
    assert capsys.readouterr().out == ""


def test_imagenet_weights_that_cannot_be_had_name_the_address_and_the_place_for_the_file(tmp_path, monkeypatch, serve):
    (tmp_path / "home").mkdir()
    address = serve(tmp_path)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "home"))
    monkeypatch.setattr("keras.src.applications.mobilenet_v2.BASE_WEIGHT_PATH", address + "/")
    with pytest.raises(BackboneError) as caught:
        load_backbone(config(weights="imagenet"))
    assert f"{address}/{WEIGHTS_FILE}" in caught.value.message
    assert str(tmp_path / "home" / "models" / WEIGHTS_FILE) in caught.value.advice
    assert "`base.model: EfficientNetLite0` needs no download" in caught.value.advice


@pytest.mark.parametrize("name", ["trained.weights.h5", WEIGHTS_FILE])
def test_weights_come_from_a_file_of_either_keras_format(trained, tmp_path, name):
    assert_same_weights(load_backbone(config(weights=str(tmp_path / name))).network, trained)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trained.weights.h5", r": \d+ of its layers do not fit, such as `\w+`: .*"),
        pytest.param(WEIGHTS_FILE, ".*", marks=pytest.mark.proof),
    ],
)
def test_weights_of_another_network_are_refused_with_what_does_not_fit(trained, tmp_path, name, said):
    with pytest.raises(BackboneError, match=rf"does not hold the weights of MobileNetV2 [^:]+'alpha': 0.5}}{said}top"):
        load_backbone(config(weights=str(tmp_path / name), options={"alpha": 0.5}))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("imagnet", r"base.weights is 'imagnet' and must be `imagenet`, `none` or a file"),
        ("trained.pth", r"a file of Keras \(.weights.h5, .h5, .keras\)\. Files of PyTorch are not read"),
        ("missing.weights.h5", r"There is no file missing.weights.h5"),
    ],
)
def test_weights_that_are_neither_a_name_nor_a_file_are_refused(weights, said):
    with pytest.raises(BackboneError, match=said):
        load_backbone(config(weights=weights))


def test_imagenet_weights_of_an_efficientnet_are_refused_as_a_file(tmp_path, monkeypatch):
    # Without the layer that Keras builds for `imagenet` alone, they would see other pixels than they were trained on.
    weights = tmp_path / "downloaded.h5"
    weights.write_bytes(b"as if from Keras")
    hashes = ("", hashlib.md5(weights.read_bytes()).hexdigest())  # noqa: S324 - as Keras does
    monkeypatch.setitem(applications.WEIGHTS_HASHES, "b0", hashes)
    with pytest.raises(BackboneError, match=r"imagenet weights of EfficientNetB0.*models/efficientnetb0_notop.h5"):
        load_backbone(config(model="EfficientNetB0", image_size=32, options={}, weights=str(weights)))


def test_a_damaged_weights_file_is_refused(tmp_path):
    (tmp_path / "bad.weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(BackboneError, match=r"bad.weights.h5 does not hold the weights"):
        load_backbone(config(weights=str(tmp_path / "bad.weights.h5")))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "MobilNetV2", "options": {}}, r"'MobilNetV2'.*Nearest: MobileNetV2"),
        ({"options": {"alhpa": 0.35}}, r"`alhpa`, which MobileNetV2 does not take. It takes: alpha. Nearest: alpha"),
        ({"options": {"include_top": True}}, r"`include_top`, which cannot be set there: the head is configured"),
        ({"image_size": 16}, r"image_size 16.*at least 32x32"),
        ({"weights": "imagenet", "options": {"alpha": 0.4}}, r"options \{'alpha': 0.4\}.*alpha"),
    ],
    ids=["network", "option", "own option", "image size", "no such weights"],
)
def test_what_keras_does_not_have_is_refused_with_what_it_has(changes, said):
    with pytest.raises(BackboneError, match=said):
        load_backbone(config(**changes))


def test_the_digest_follows_weights_preprocessing_and_size_and_not_trainability():
    base = load_backbone(config(image_size=32))
    before = base.digest()
    # What runs of earlier releases have: the side alone.
    parts = ("32", base.preprocess.name, network_digest(base.network))
    assert before == hashlib.sha256("\n".join(parts).encode()).hexdigest()
    base.network.trainable = False
    assert base.digest() == before
    assert load_backbone(config(image_size=32, preprocessing="0..1")).digest() != before
    assert load_backbone(config(image_size=64)).digest() != before
    assert load_backbone(config(image_size=32, fit="pad")).digest() != before
    variable = base.network.weights[-1]
    value = variable.numpy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(9))
    variable.assign(value)
    assert base.digest() != before


def test_a_half_has_a_digest_of_its_own_that_the_other_half_does_not_touch():
    with two_replicas().scope():
        backbone = load_backbone(config(image_size=32))
    frozen, unfrozen = (network_digest(half) for half in backbone.cut(3))
    again = load_backbone(config(image_size=32))
    assert tuple(network_digest(half) for half in again.cut(3)) == (frozen, unfrozen)
    again.network.weights[-1].assign(again.network.weights[-1] + 1.0)
    assert network_digest(again.cut(3)[0]) == frozen
    assert network_digest(again.cut(3)[1]) != unfrozen
    assert network_digest(again.cut(4)[0]) != frozen


def test_a_network_of_one_channel_has_no_imagenet_weights_and_no_mean_of_three_colors():
    gray = {"weights": "none", "image_size": 32, "channels": 1}
    mobile = BaseNetworkConfig(model="MobileNetV2", options={"alpha": 0.35}, **gray)
    assert load_backbone(mobile).network.input_shape == (None, 32, 32, 1)
    with pytest.raises(BackboneError, match=r"base.channels is 1, and the imagenet weights of MobileNetV2 take 3"):
        load_backbone(mobile.model_copy(update={"weights": "imagenet"}))
    vgg = BaseNetworkConfig(model="VGG16", **gray)
    with pytest.raises(BackboneError, match=r"VGG16 preprocesses pixels of 3 channels\..*Set base.preprocessing"):
        load_backbone(vgg)
    assert load_backbone(vgg.model_copy(update={"preprocessing": "0..1"})).network.input_shape == (None, 32, 32, 1)
