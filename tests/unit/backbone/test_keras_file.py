import importlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from transfer.backbone.backbone import computes_in_half, set_precision
from transfer.backbone.identity import base_identity
from transfer.backbone.load import load_backbone
from transfer.config import BaseNetworkConfig
from transfer.errors import BackboneError
from transfer.training.model import TransferModel

# Keras saves and loads weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def load(path, **changes):
    return load_backbone(BaseNetworkConfig(**{"model": str(path), "image_size": 16} | changes))


def layers():
    return [
        keras.layers.Conv2D(4, 3, name="first"),
        keras.layers.Conv2D(8, 3, name="second"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(64, name="projection"),
    ]


def functional(shape=(16, 16, 3)):
    images = x = keras.Input(shape)
    for layer in layers():
        x = layer(x)
    return keras.Model(images, x)


@pytest.fixture
def images():
    return tf.random.stateless_uniform((2, 16, 16, 3), seed=(1, 2), maxval=255.0)


def test_a_functional_model_is_a_base_that_sees_pixels_as_they_are(tmp_path, images):
    model = functional()
    model.save(tmp_path / "base.keras")
    backbone = load(tmp_path / "base.keras")
    assert backbone.name == "base"
    assert [block.name for block in backbone.blocks] == ["first", "second", "projection"]
    assert backbone.preprocess(images) is images
    np.testing.assert_array_equal(backbone.network(images).numpy(), model(images).numpy())


def test_a_sequential_model_is_a_base_and_a_tap_leaves_the_layers_behind_it_out(tmp_path, images):
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers()])
    model.save(tmp_path / "base.keras")
    backbone = load(tmp_path / "base.keras", tap="second")
    assert [block.name for block in backbone.blocks] == ["first", "second"]
    expected = model.layers[1](model.layers[0](images))
    np.testing.assert_array_equal(backbone.network(images).numpy(), expected.numpy())


def test_an_open_image_size_is_fixed_to_the_configured_one(tmp_path, images):
    model = functional((None, None, 3))
    model.save(tmp_path / "base.keras")
    backbone = load(tmp_path / "base.keras")
    assert backbone.network.input_shape == (None, 16, 16, 3)
    assert backbone.blocks[0].output_shape == (None, 14, 14, 4)
    np.testing.assert_array_equal(backbone.network(images).numpy(), model(images).numpy())


def test_two_loads_of_a_file_have_one_digest(tmp_path):
    functional().save(tmp_path / "base.keras")
    functional().save(tmp_path / "other.keras")
    assert load(tmp_path / "base.keras").digest() == load(tmp_path / "base.keras").digest()
    assert load(tmp_path / "base.keras").digest() != load(tmp_path / "other.keras").digest()


def test_another_image_size_is_refused_naming_both(tmp_path):
    functional().save(tmp_path / "base.keras")
    with pytest.raises(BackboneError, match=r"16×16 pixels and base.image_size is 32.*Set base.image_size to 16"):
        load(tmp_path / "base.keras", image_size=32)


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"
    images = keras.Input((16, 16, 3))
    code = keras.layers.Lambda(lambda x, path=str(ran): (open(path, "w").close(), x)[1])  # noqa: PTH123
    keras.Model(images, code(images)).save(tmp_path / "code.keras")
    ran.unlink()  # building the model ran it
    with pytest.raises(BackboneError, match=r"cannot be read as a .keras file.*never run"):
        load(tmp_path / "code.keras")
    assert not ran.exists()


def test_a_model_with_two_outputs_is_refused(tmp_path):
    images = keras.Input((16, 16, 3))
    keras.Model(images, [keras.layers.ReLU()(images), keras.layers.ReLU()(images)]).save(tmp_path / "two.keras")
    with pytest.raises(BackboneError, match=r"1 inputs and 2 outputs"):
        load(tmp_path / "two.keras")


def test_a_model_of_images_of_two_channels_is_refused(tmp_path):
    images = keras.Input((16, 16, 2))
    keras.Model(images, keras.layers.Conv2D(2, 3)(images)).save(tmp_path / "two.keras")
    with pytest.raises(BackboneError, match=r"takes float32 of shape \(None, 16, 16, 2\)"):
        load(tmp_path / "two.keras")


def test_an_output_that_is_no_feature_is_refused_with_advice_to_tap(tmp_path):
    images = keras.Input((16, 16, 3))
    features = keras.layers.Conv2D(2, 16, name="features")(images)
    keras.Model(images, keras.layers.Reshape((1, 1, 1, 2))(features)).save(tmp_path / "rank5.keras")
    with pytest.raises(BackboneError, match=r"answers shape \(None, 1, 1, 1, 2\).*base.tap"):
        load(tmp_path / "rank5.keras")
    assert load(tmp_path / "rank5.keras", tap="features").network.output_shape == (None, 1, 1, 2)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "bad.keras").write_bytes(content)
    with pytest.raises(BackboneError, match=r"bad.keras cannot be read as a .keras file"):
        load(tmp_path / "bad.keras")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BackboneError, match=r"There is no file .*missing.keras"):
        load(tmp_path / "missing.keras")


def test_options_and_files_of_weights_belong_to_keras_applications_only(tmp_path):
    functional().save(tmp_path / "base.keras")
    with pytest.raises(BackboneError, match=r"Remove base.options"):
        load(tmp_path / "base.keras", options={"alpha": 1.0})
    with pytest.raises(BackboneError, match=r"Remove base.weights"):
        load(tmp_path / "base.keras", weights="other.weights.h5")


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_weights_alone_are_refused_with_what_to_make_of_them(weights):
    with pytest.raises(
        BackboneError, match=r"mine.weights.h5 has weights and no network. .* base.weights to this file"
    ):
        load("mine.weights.h5", weights=weights)


def test_a_whole_model_in_hdf5_is_read(tmp_path, images):
    model = functional()
    legacy_h5_format.save_model_to_hdf5(model, str(tmp_path / "old.h5"))
    backbone = load(tmp_path / "old.h5")
    np.testing.assert_array_equal(backbone.network(images).numpy(), model(images).numpy())
    assert [block.name for block in backbone.blocks] == ["first", "second", "projection"]


def test_hdf5_that_keras_does_not_read_is_refused_with_what_to_do(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["kernel"] = np.zeros(4)
    with pytest.raises(BackboneError, match=r"old.h5 cannot be read as a model in HDF5: .*base.weights to the file"):
        load(tmp_path / "old.h5")


def test_hdf5_that_leads_to_another_file_or_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["secret"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(BackboneError, match=r"secret in it lies elsewhere"):
        load(tmp_path / "link.h5")
    monkeypatch.setattr("transfer.backbone.keras_file.MAX_MODULE_BYTES", 1000)
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("zeros", (1001,), "u1", compression="gzip")
    with pytest.raises(BackboneError, match=r"it unpacks to more than 1,000 bytes"):
        load(tmp_path / "bomb.h5")


OWN_LAYER = """
import keras


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2.0 * x
"""


def test_own_layers_come_from_the_module_that_the_configuration_names(tmp_path, monkeypatch, images, caplog):
    monkeypatch.syspath_prepend(tmp_path)
    code = tmp_path / "own_layers_of_a_test.py"
    code.write_text(OWN_LAYER)
    own = importlib.import_module("own_layers_of_a_test")
    pixels = keras.Input((16, 16, 3))
    model = keras.Model(pixels, own.Doubled()(keras.layers.Conv2D(64, 3)(pixels)))
    model.save(tmp_path / "base.keras")
    with pytest.raises(BackboneError, match=r"base.custom_objects names"):
        load(tmp_path / "base.keras")
    with caplog.at_level("INFO", "transfer"):
        backbone = load(tmp_path / "base.keras", custom_objects="own_layers_of_a_test")
    assert "Importing own_layers_of_a_test" in caplog.text
    np.testing.assert_array_equal(backbone.network(images).numpy(), model(images).numpy())
    # Other code is another base, although the file is the same.
    digest = backbone.digest()
    named = BaseNetworkConfig(model=str(tmp_path / "base.keras"), custom_objects="own_layers_of_a_test")
    identity = base_identity(named, storage=None)
    code.write_text(OWN_LAYER.replace("2.0", "3.0"))
    assert backbone.digest() != digest
    assert base_identity(named, storage=None) != identity
    with pytest.raises(BackboneError, match=r"'no.such_module', and importing it failed: .*PYTHONPATH"):
        load(tmp_path / "base.keras", custom_objects="no.such_module")
    with pytest.raises(BackboneError, match=r"MobileNetV2 is no .keras or .h5 file"):
        load("MobileNetV2", custom_objects="own_layers_of_a_test", image_size=96)


def test_weights_none_starts_a_file_with_the_same_random_weights_each_time(tmp_path):
    functional().save(tmp_path / "base.keras")
    pretrained, first, second = (
        load(tmp_path / "base.keras", **changes) for changes in ({}, {"weights": "none"}, {"weights": "none"})
    )
    assert first.digest() == second.digest() != pretrained.digest()
    assert [block.name for block in first.blocks] == [block.name for block in pretrained.blocks]


@pytest.fixture
def precise():
    """Sets the precision; afterwards it is off again."""
    yield set_precision
    set_precision("off")


def intricate():
    """Nested, shared, called on another size than it was built for, with attention and a bare operation."""
    images = keras.Input((None, None, 3))
    nested = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization()], name="nested"
    )
    shared = keras.layers.Conv2D(8, 3, padding="same", name="shared")
    x = shared(shared(nested(images / 255.0)))
    x = keras.layers.Reshape((-1, 8))(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    return keras.Model(images, keras.layers.GlobalAveragePooling1D()(x))


@pytest.mark.parametrize("saved", ["off", "float16"])
@pytest.mark.parametrize("chosen", ["off", "bfloat16"])
@pytest.mark.proof
def test_a_file_computes_in_the_chosen_precision_whatever_it_was_saved_with(tmp_path, images, precise, saved, chosen):
    precise(saved)
    model = intricate()
    model.save(tmp_path / "base.keras")
    precise(chosen)
    expected = intricate()
    expected.set_weights(model.get_weights())
    backbone = load(tmp_path / "base.keras")
    network = backbone.network
    np.testing.assert_array_equal(network(images).numpy(), expected(images).numpy())
    assert computes_in_half(network) == (chosen != "off")
    assert {weight.dtype for weight in network.weights} == {"float32"}
    assert [block.name for block in backbone.blocks] == ["nested", "shared", "attention"]
    assert network.get_layer("nested").layers[0].name == model.get_layer("nested").layers[0].name
    assert backbone.digest() == load(tmp_path / "base.keras").digest()
    frozen, unfrozen = backbone.cut(1)
    np.testing.assert_array_equal(unfrozen(frozen(images)).numpy(), network(images).numpy())
    assert computes_in_half(load(tmp_path / "base.keras", weights="none").network) == (chosen != "off")


def test_a_quantised_file_is_refused_in_half_precision(tmp_path, precise):
    model = functional()
    model.get_layer("projection").quantize("int8")
    model.save(tmp_path / "base.keras")
    assert load(tmp_path / "base.keras")
    precise("bfloat16")
    with pytest.raises(BackboneError, match=r"training.mixed_precision says, which is bfloat16.*quantised"):
        load(tmp_path / "base.keras")


def test_random_layers_in_a_file_do_nothing_and_leave_no_trace(tmp_path, images):
    random_layers = [keras.layers.RandomFlip(), keras.layers.RandomRotation(0.5), keras.layers.RandomBrightness(0.5)]
    augmentation = keras.Sequential([keras.Input((16, 16, 3)), *random_layers], name="augmentation")
    plain = functional()
    entry = keras.Input((16, 16, 3))
    x = plain.get_layer("first")(augmentation(entry, training=True))
    x = keras.layers.Dropout(0.5)(x, training=True)  # as people do who ask for random answers
    x = plain.get_layer("second")(keras.layers.RandomContrast(0.5)(x))
    for name in ("pool", "projection"):
        x = plain.get_layer(name)(x)
    keras.Model(entry, x).save(tmp_path / "base.keras")

    backbone = load(tmp_path / "base.keras")
    digest = backbone.digest()
    expected = plain(images).numpy()
    for unfreeze in ("all", 2, 1):
        model = TransferModel(backbone, keras.Sequential([keras.layers.Identity()]), ["a", "b"], digest=digest)
        split = model.cut(unfreeze)
        np.testing.assert_array_equal(split.logits(split.features(images), training=True).numpy(), expected)
        assert {v.path for v in split.variables} <= {w.path for w in backbone.network.weights}
    assert len(model.cut("all").variables) == len(plain.trainable_variables)
    assert sum(block.parameters for block in backbone.blocks) == plain.count_params()
    assert backbone.digest() == digest == load(tmp_path / "base.keras").digest()


def test_a_gray_network_takes_one_channel_and_says_which_key_is_missing(tmp_path):
    functional((None, None, 1)).save(tmp_path / "gray.keras")
    assert load(tmp_path / "gray.keras", channels=1).network.input_shape == (None, 16, 16, 1)
    with pytest.raises(BackboneError, match=r"1 channel and base.channels is 3\..*Set base.channels to 1"):
        load(tmp_path / "gray.keras")
    functional().save(tmp_path / "color.keras")
    with pytest.raises(BackboneError, match=r"3 channels and base.channels is 1\..*Set base.channels to 3"):
        load(tmp_path / "color.keras", channels=1)
