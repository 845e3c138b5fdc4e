"""What can be seen to be missing without TensorFlow: the source, and files that the base network is read from.

Divisibility and splits are part of the configuration's own checks; classes are checked by ingest before it writes.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from transfer.backbone.source import saved_model_in
from transfer.config import BaseNetworkConfig, Config
from transfer.config.paths import path_here
from transfer.errors import ConfigError
from transfer.storage import open_store


def check_source_and_files(config: Config) -> None:
    """Raise ConfigError when the dataset's source, or a file of the base network, is not there."""
    _check_source(config)
    _check_base(config)


def _check_source(config: Config) -> None:
    source = config.dataset.source
    if source.startswith("tfds:"):
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise ConfigError(
                f"dataset.source is `{source}`, and tensorflow-datasets is not installed.",
                advice="Install the extra: pip install 'transfer[tfds]'.",
            )
    elif source != "digits" and "://" not in source and not path_here(source).exists():
        raise ConfigError(
            f"dataset.source is `{source}`, and there is nothing at {path_here(source).absolute()}.",
            advice="Give a folder, an archive, a table, an s3:// prefix, `tfds:NAME` or `digits`.",
        )


def files_of(base: BaseNetworkConfig, *, root: Path = Path()) -> dict[str, str]:
    """Files, folders and addresses that a base network is read from, by key; relative ones are relative to `root`."""
    files = {}
    here = root / path_here(base.model)
    if _is_path(base.model) or here.is_file() or saved_model_in(here) is not None:
        files["base.model"] = base.model
    if base.weights_file is not None:
        files["base.weights"] = base.weights_file
    return files


def _check_base(config: Config) -> None:
    for key, file in files_of(config.base).items():
        if not _exists(file, config):
            raise ConfigError(f"{key} is `{file}`, and there is nothing there.", advice="Give an existing file or URI.")


def _is_path(model: str) -> bool:
    return os.sep in model or model.endswith((".keras", ".tar.gz", ".tgz"))


def _exists(file: str, config: Config) -> bool:
    if file.startswith("s3://"):
        folder, _, name = file.rstrip("/").rpartition("/")
        parent = open_store(config.storage.model_copy(update={"uri": folder}))
        return next(iter(parent.list(name)), None) is not None
    return "://" in file or path_here(file).exists()
