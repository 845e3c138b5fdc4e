"""Whatever decides the frozen part's output is part of the digest that names it: every key, one after the other."""

import shutil

import keras
import pytest

from tests.changed_keys import changed_keys
from tests.digits import digits_config
from transfer.backbone.load import build_backbone
from transfer.config import NOT_LEARNED, Decides, deciding, parse_config
from transfer.features.frozen import frozen_parts_of
from transfer.training.feature_plan import requests_of

NOT_IN_THE_DIGEST = {
    "a permission": "base.accept_head",
    "the code is, of layers that come from there": "base.custom_objects",
    "it is the process's when a network is built, and a part of its layers": "training.mixed_precision",
}
"""Keys that state that they decide features, and which this test does not see."""


@pytest.fixture
def config(tmp_path):
    """Its base is a network of two blocks, for images of any size."""
    images = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(4, 3, name="first")(images)
    keras.Model(images, keras.layers.Conv2D(4, 3, name="second")(maps)).save(tmp_path / "base.keras")
    keras.models.clone_model(keras.models.load_model(tmp_path / "base.keras")).save(tmp_path / "other.keras")
    return digits_config(
        tmp_path,
        str(tmp_path),
        base={"model": str(tmp_path / "base.keras"), "image_size": 32, "fit": "crop"},
        head={"pooling": "flatten"},
        augmentation={"zoom": 0.1, "views": 1},
        phases=[{"early_stopping": {}}],
    )


def digest_of(config):
    """Digest of what is cached of the training split."""
    by_split = frozen_parts_of(config, build_backbone(config), requests_of(config, config.phases[0]))
    return by_split["train"][0].digest


def stands_at(key, document):
    """Whether a dotted key is one of those in a document."""
    for part in key.split("."):
        if isinstance(document, list):
            document = document[int(part)]
        elif part in document:
            document = document[part]
        else:
            return False
    return True


def test_each_key_that_decides_the_output_of_the_frozen_part_is_in_its_digest(config, tmp_path):
    values = {
        "base__model": str(tmp_path / "other.keras"),
        "base__weights": "none",
        "base__tap": "first",
        "base__custom_objects": "json",
        "base__preprocessing": "0..1",
    }
    before = digest_of(config)
    changed = changed_keys(config, **values)
    # Which images there are, shards say. Options make another network, of keras.applications alone.
    looked_at = {key: changed[key] for key in changed if key.partition(".")[0] not in {*NOT_LEARNED, "dataset"}}
    del looked_at["phases.0.lora"]  # Needs blocks to train, and decides nothing of what is below them.
    # A file has one number of channels; with another one, its network and its digest are others anyway.
    del looked_at["base.options"], looked_at["base.channels"]
    assert None not in looked_at.values()
    seen = {key for key, other in looked_at.items() if digest_of(other) != before}
    stated = {key for key in looked_at if stands_at(key, deciding(config, Decides.FEATURES))}
    assert seen == stated - set(NOT_IN_THE_DIGEST.values())
    # The same file again is the same; another one under its name is not.
    shutil.copy(tmp_path / "other.keras", tmp_path / "base.keras")
    assert digest_of(config) != before


def test_the_same_shard_in_another_window_is_another_digest(config):
    depths = ["reject", "scale", {"window": [0, 4095]}, {"window": [0, 4096]}]
    digests = {digest_of(with_depth(config, depth)) for depth in depths}
    assert len(digests) == len(depths)


def with_depth(config, depth):
    return parse_config({**config.model_dump(), "dataset": {"source": "images", "depth": depth}})
