"""A screen of networks on some digits: the figures, what training finds again, and networks that cannot be had."""

from pathlib import Path

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer import jobs
from transfer.backbone.load import build_backbone
from transfer.config import parse_config
from transfer.dataset.manifest import load_dataset
from transfer.demo import BASE_PATH
from transfer.errors import ConfigError
from transfer.evaluation import sampled
from transfer.features.extract import Extractor
from transfer.features.frozen import frozen_part_of
from transfer.screening.candidates import candidates_of
from transfer.screening.page import headline
from transfer.screening.result import StoredScreen
from transfer.storage import Log, open_store


@pytest.fixture(scope="module")
def screened(tmp_path_factory):
    """A configuration, and its screen of the demo's base, a size that it does not take, and a missing network."""
    source, _ = ingest_some_digits(tmp_path_factory.mktemp("digits"))
    config = digits_config(source, str(source.parent / "storage"), phases=[{"unfreeze": 0, "epochs": 1}])
    return config, *jobs.screen(config, bases=[str(BASE_PATH), f"{BASE_PATH}@16", "NoSuchNet"])


def test_a_screen_has_the_best_cut_first_and_a_reason_for_a_network_that_cannot_be_had(screened):
    config, result, page = screened
    sized, missing = result.failed
    assert (sized.base, missing.base) == (f"{BASE_PATH}@16", "NoSuchNet")
    assert "image_size is 16" in sized.reason
    assert "'NoSuchNet'" in missing.reason
    assert (result.images, result.training_images) == (144, 144)
    assert len(result.cuts) == 3
    assert [cut.right for cut in result.cuts] == sorted((cut.right for cut in result.cuts), reverse=True)
    best = result.best
    assert best.accuracy == best.right / 144 > 0.8
    assert best.interval.low < best.accuracy < best.interval.high
    inner = [cut for cut in result.cuts if cut.tap]
    (whole,) = (cut for cut in result.cuts if not cut.tap)
    assert all(0 < cut.ms < whole.ms and 0 < cut.size_bytes < whole.size_bytes for cut in inner)
    store = open_store(config.storage)
    stored = Log(store, f"screens/{config.name}").read_as(StoredScreen, 1)
    assert stored.result == result
    text = store.read(page.removeprefix(f"{store.uri}/")).decode()
    for said in (headline(result), "NoSuchNet", f"--set {best.settings[0]}", "144 of 144 training images"):
        assert said in text.replace("&#39;", "'")


def test_what_a_screen_extracted_is_found_by_training(screened):
    config, _, _ = screened
    store = open_store(config.storage)
    shards = load_dataset(store, config.name, 1).shards_of("train")
    part = frozen_part_of(build_backbone(config), 0, map_dtype="float32")
    assert Extractor(store).plan(shards, [part]) == []


def test_features_of_an_inner_cut_are_those_of_a_base_that_is_tapped_there(screened):
    config, result, _ = screened
    inner = next(cut for cut in result.cuts if cut.tap)
    (setting,) = (setting for setting in inner.settings if setting.startswith("base.tap="))
    base = config.base.model_copy(update={"tap": setting.removeprefix("base.tap=")})
    tapped, _ = jobs.screen(config.model_copy(update={"base": base}), bases=[str(BASE_PATH)])
    (whole,) = (cut for cut in tapped.cuts if cut.tap is None)
    assert (whole.size, whole.right, whole.size_bytes) == (inner.size, inner.right, inner.size_bytes)


def test_a_sample_of_a_larger_split_is_not_cached_and_tells_the_same_as_cached_features(
    screened, monkeypatch, tmp_path
):
    config, result, _ = screened
    monkeypatch.setattr(sampled, "SAMPLE_ROWS", 100)
    base = str(BASE_PATH)
    of_cached, _ = jobs.screen(config, bases=[base])
    source = config.dataset.source
    elsewhere = digits_config(source, str(tmp_path / "storage"), phases=[{"unfreeze": 0, "epochs": 1}])
    computed, _ = jobs.screen(elsewhere, bases=[base])
    assert not list(open_store(elsewhere.storage).list("features/"))
    known = {cut.tap: cut for cut in of_cached.cuts}
    for cut in computed.cuts:
        np.testing.assert_allclose(cut.logme, known[cut.tap].logme, atol=1e-4)
        assert (cut.size, cut.right) == (known[cut.tap].size, known[cut.tap].right)
    assert result.best.right != of_cached.best.right


def test_a_network_of_its_own_has_its_own_size_and_no_options_of_another():
    document = {"name": "a", "storage": "./s", "dataset": {"source": "images", "test": 0.2}}
    own = {"model": "MobileNetV2", "image_size": 96, "options": {"alpha": 0.35}, "weights": "none"}
    config = parse_config(document | {"base": own})
    same, sized, other, file = candidates_of(config, ["MobileNetV2", " VGG16@64 ", "VGG16", "./base.keras"])
    assert same.config == config
    of_file = parse_config(document | {"base": {"model": str(Path.cwd() / "base.keras"), "preprocessing": "-1..1"}})
    (own_file,) = candidates_of(of_file, ["./base.keras"])
    assert own_file.config == of_file, "the file of the configuration, by the path that was given"
    assert (sized.config.base.image_size, other.config.base.image_size) == (64, 96)
    assert (other.config.base.options, other.config.base.weights, file.config.base.weights) == ({}, "none", "imagenet")
    assert sized.settings("block1_pool") == (
        "base.model=VGG16",
        "base.image_size=64",
        "base.options={}",
        "base.tap=block1_pool",
    )
    assert same.settings(None) == ("base.model=MobileNetV2",)
    for bases, words in (([], "no network"), (["A", "A"], "twice"), (["A@big"], "no number")):
        with pytest.raises(ConfigError, match=words):
            candidates_of(config, bases)
