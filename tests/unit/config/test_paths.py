"""Paths of a configuration, on this machine and where nobody of that name lives."""

import logging
from pathlib import Path

import pytest

from tests.digits import digits_config
from transfer.config import StorageConfig, parse_config
from transfer.config.paths import path_here
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
