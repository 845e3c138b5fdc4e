"""A version that was not trained here, wherever a version's run or dataset would be told of."""

import keras
import pytest
import tensorflow as tf

from tests.digits import digits_config
from tests.published import add_version, pretrained
from transfer.config.reference import render
from transfer.errors import BackboneError, ConfigError, RegistryError
from transfer.maintenance.runs import datasets_of_models, versions_from
from transfer.pages.contents import read_contents
from transfer.pages.write import render_index
from transfer.registry.pretrained import load_model
from transfer.registry.promote import promote
from transfer.registry.versions import load_version, pretrained_id
from transfer.storage import open_store
from transfer.training.warm_start import published_head

# Keras saves weights through np.array(variable), which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def config(tmp_path):
    keras.utils.set_random_seed(1)
    images = keras.Input((16, 16, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images))
    keras.Model(images, keras.layers.Dense(3, "softmax")(features)).save(tmp_path / "net.keras")
    base = {"model": str(tmp_path / "net.keras"), "image_size": 16}
    return digits_config(tmp_path / "images", str(tmp_path / "storage"), base=base)


def test_its_origin_is_told_in_place_of_a_run(tmp_path, folder_storage, answer_of, transfer, config):
    store = open_store(folder_storage)
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/saved_model.pb").write_bytes(b"graph")
    version = add_version(store, "digits", tmp_path / "exported", classes=["a", "b"], provenance=pretrained())
    assert load_version(store, "digits", 1) == version
    assert version.trained is None
    with pytest.raises(RegistryError, match="has no run and no report"):
        _ = version.of_run
    with pytest.raises(ConfigError, match="has no head of a run"):
        published_head(store, config, "digits/1")
    path = tmp_path / "config.yaml"
    path.write_text(render(config))
    promote(store, version, reason="as it is")
    listed = answer_of("registry", "list", path)["versions"][0]
    assert (listed["run"], listed["dataset"], listed["metrics"]) == (None, None, None)
    assert answer_of("registry", "show", path)["provenance"]["base"]["weights_from"] == "imagenet"
    assert "published as it is" in transfer("registry", "show", path).stdout
    assert "pretrained, as it is" in render_index(read_contents(store))
    assert (list(datasets_of_models(store)), versions_from(store)) == ([], {})


def test_a_network_with_its_own_classifier_is_a_model_whose_digest_follows_both(config):
    model = load_model(config, ["a", "b", "c"])
    assert (model.classes, model.untrained_classes) == (["a", "b", "c"], [])
    model.head.weights[-1].assign_add(tf.ones(3))
    assert load_model(config, ["a", "b", "c"]).digest == model.digest
    with pytest.raises(ConfigError, match="has 3 outputs, and nothing names its classes"):
        load_model(config, None)
    tapped = config.model_copy(update={"base": config.base.model_copy(update={"tap": "dense"})})
    with pytest.raises(BackboneError, match=r"base.tap is 'dense'"):
        load_model(tapped, None)


def test_its_id_follows_from_what_decides_its_answers(config):
    first = pretrained_id(config, ["a", "b", "c"])
    assert pretrained_id(config.model_copy(update={"name": "other"}), ["a", "b", "c"]) == first
    assert pretrained_id(config, ["c", "b", "a"]) != first
    sharper = config.base.model_copy(update={"antialias": True})
    assert pretrained_id(config.model_copy(update={"base": sharper}), ["a", "b", "c"]) != first


def test_commands_say_what_they_lack(transfer, config, tmp_path):
    (tmp_path / "config.yaml").write_text(render(config))
    for arguments, said in (
        (("publish", tmp_path / "config.yaml"), "either --run-id RUN, with or without --again, or --pretrained"),
        (("predict", "--images", "x.png"), "either a configuration or --model"),
        (("predict", "--model", "MobileNetV2", "--version", 1, "--images", "x.png"), "belong to a configuration"),
    ):
        refused = transfer(*arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert said in refused.stderr
