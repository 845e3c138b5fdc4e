"""Paths of a configuration, on this machine and where nobody of that name lives."""

import copy
import logging
from pathlib import Path

import pytest
import yaml

from tests.digits import digits_config
from transfer.config import StorageConfig, load_config, parse_config
from transfer.config.paths import anchor, path_here
from transfer.errors import ConfigError
from transfer.preflight import check_source_and_files
from transfer.storage import open_store

NOBODYS = "~nobody-of-this-name/place"


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path_here("~/images") == tmp_path / "images"
    assert path_here("images/~") == Path("images/~")


def test_a_home_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="'~nobody-of-this-name/place' begins with a home folder") as refused:
        path_here(NOBODYS)
    assert "HOME" in refused.value.advice


def test_storage_in_it_is_one_of_the_mistakes_of_a_configuration():
    with pytest.raises(ConfigError) as refused:
        parse_config({"name": "digits", "storage": NOBODYS, "epochs": 3})
    assert "begins with a home folder" in refused.value.message
    assert "epochs" in refused.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": {"source": NOBODYS}},
        {"base": {"model": NOBODYS}},
        {"base": {"model": "MobileNetV2", "weights": NOBODYS}},
    ],
)
def test_images_and_weights_in_it_are_found_missing_before_work(tmp_path, change):
    config = digits_config(tmp_path, str(tmp_path / "storage"), **change)
    with pytest.raises(ConfigError, match="begins with a home folder"):
        check_source_and_files(config)


def test_a_network_in_it_is_refused():
    from transfer.backbone.load import load_backbone

    config = digits_config(Path("images"), "storage", base={"model": NOBODYS, "image_size": 32})
    with pytest.raises(ConfigError, match="begins with a home folder"):
        load_backbone(config.base, storage=config.storage)


def test_without_it_nothing_is_kept_there_which_is_said(s3_storage, caplog):
    caplog.set_level(logging.WARNING)
    open_store(StorageConfig(**{**s3_storage.model_dump(), "cache_folder": NOBODYS}))
    assert "begins with a home folder that this machine does not have. So nothing of s3://" in caplog.text


WRITTEN = {
    "name": "n",
    "storage": {"uri": "./storage", "cache_folder": "~/cache"},
    "dataset": {"source": "../images"},
    "base": {"model": "./module", "weights": "w.weights.h5"},
    "sweep": {
        "space": {"base.model": ["MobileNetV2", "other.keras", "s3://b/k.keras"], "base": [{"model": "a.keras"}]},
        "mlflow": "sqlite:///trials.db",
    },
}
NO_PATHS = {
    "name": "n",
    "storage": "s3://bucket/prefix",
    "dataset": {"source": "tfds:flowers"},
    "base": {"model": "ResNet50"},
    "sweep": {"space": {"base.weights": ["none", "imagenet"]}, "search": "grid", "mlflow": "databricks"},
}


@pytest.fixture
def at(tmp_path, monkeypatch):
    """Writes a configuration into a folder, and has another one be the current folder."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def write(document):
        path = tmp_path / "conf/config.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write


def test_relative_paths_of_all_keys_begin_in_a_folder(tmp_path):
    document = copy.deepcopy(WRITTEN)
    anchor(document, tmp_path / "conf")
    conf = str(tmp_path / "conf")
    assert document["storage"] == {"uri": f"{conf}/storage", "cache_folder": "~/cache"}
    assert document["dataset"] == {"source": f"{tmp_path}/images"}
    assert document["base"] == {"model": f"{conf}/module", "weights": f"{conf}/w.weights.h5"}
    assert document["sweep"]["space"]["base.model"] == ["MobileNetV2", f"{conf}/other.keras", "s3://b/k.keras"]
    assert document["sweep"]["space"]["base"] == [{"model": f"{conf}/a.keras"}]
    assert document["sweep"]["mlflow"] == f"sqlite:///{conf}/trials.db"


def test_what_is_no_path_stays_as_it_is(at, tmp_path):
    # Results of another network, say: what lies beside a configuration does not make a path of a name.
    for name in ("ResNet50", "databricks", "none"):
        (tmp_path / "conf" / name).mkdir()
    assert load_config(at(NO_PATHS)) == parse_config(NO_PATHS)


def test_paths_of_a_file_begin_in_its_folder_and_those_of_overrides_in_the_current_one(at, tmp_path):
    path = at({**NO_PATHS, "storage": "./storage"})
    config = load_config(path, ["dataset.source=images", "base.model=../base.keras"])
    assert config.storage.uri == str(tmp_path / "conf/storage")
    assert config.dataset.source == str(tmp_path / "elsewhere/images")
    assert config.base.model == str(tmp_path / "base.keras")


def test_a_folder_that_is_no_text_is_one_of_the_mistakes(at):
    with pytest.raises(ConfigError, match=r"storage\.uri") as refused:
        load_config(at({**NO_PATHS, "storage": {"uri": 3}, "base": ["x"]}))
    assert "base" in refused.value.message
