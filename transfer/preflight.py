"""Checks without TensorFlow that the source and the files of the base network exist, and that an archive opens.

The configuration itself checks divisibility; `dataset/rehearsal.py` predicts what ingest finds in the images.
"""

from __future__ import annotations

import importlib.util

from transfer.config import BaseNetworkConfig, Config, DatasetConfig, StorageConfig
from transfer.config.paths import is_model_file, is_source_path, path_here
from transfer.dataset.sources import is_packed
from transfer.dataset.sources.archive import ARCHIVE_SUFFIXES, check_archive
from transfer.dataset.sources.fetch import names_beside
from transfer.errors import BackboneError, ConfigError, DatasetError, StorageError
from transfer.runtime.distribution import install_extra
from transfer.storage import open_store

_FILES = (".keras", ".h5", ".hdf5", *ARCHIVE_SUFFIXES, ".csv", ".tsv", ".parquet")
"""Suffixes of single objects in a bucket; any other name is a prefix."""


def check_source_and_files(config: Config) -> None:
    """Raise DatasetError if `check_source` refuses the source, BackboneError if a file of the base network is missing.

    Raises StorageError if S3 fails. It reads one page of a bucket's listing, and no object.
    """
    check_source(config.dataset, config.storage)
    check_base_files(config.base, config.storage)


def check_splits(config: Config, *, sweeps: bool) -> None:
    """Raise ConfigError if a job needs a split that is not given and whose share is 0. `sweeps`: whether it is a sweep.

    The splits in a column of a table are known only when the table is read.
    """
    dataset = config.dataset
    if dataset.validation > 0 or dataset.split_column is not None or "validation" in (dataset.splits or {}):
        return
    if sweeps:
        raise ConfigError(
            "A sweep compares trials on the validation split, and dataset.validation is 0.",
            advice="Set dataset.validation above 0.",
        )
    for number, phase in enumerate(config.phases):
        if phase.early_stopping is not None:
            raise ConfigError(
                f"phases.{number}.early_stopping needs a validation split, and dataset.validation is 0.",
                advice="Set dataset.validation above 0 or remove early_stopping.",
            )
    if dataset.test == 0 and "test" not in (dataset.splits or {}):
        raise ConfigError(
            "dataset.validation and dataset.test are both 0: there is nothing to evaluate the run on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )


def check_source(dataset: DatasetConfig, storage: StorageConfig) -> None:
    """Raise DatasetError if the source is missing, or is an archive on this machine that cannot be opened.

    Raises StorageError if S3 fails.
    """
    source = dataset.source
    if source.startswith("tfds:"):
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise DatasetError(
                f"dataset.source is `{source}`, and tensorflow-datasets is not installed.",
                advice=install_extra("tfds"),
            )
    elif is_source_path(source) and not _exists("dataset.source", source, storage):
        in_bucket = source.startswith("s3://")
        where = f"there.{names_beside(source, storage)}" if in_bucket else f"at {path_here(source).absolute()}."
        raise DatasetError(
            f"dataset.source is `{source}`, and there is nothing {where}",
            advice="Give a folder, an archive, a table, an s3:// prefix, `tfds:NAME` or `digits`.",
        )
    elif is_packed(source) and "://" not in source and (archive := path_here(source)).is_file():
        check_archive(archive, uri=source)


def files_of(base: BaseNetworkConfig) -> dict[str, str]:
    """Files, folders and addresses of a base network, by key."""
    files = {}
    if is_model_file(base.model):
        files["base.model"] = base.model
    if base.weights_file is not None:
        files["base.weights"] = base.weights_file
    return files


def check_base_files(base: BaseNetworkConfig, storage: StorageConfig) -> None:
    """Raise BackboneError if a file of a base network is missing, StorageError if S3 fails."""
    for key, file in files_of(base).items():
        if not _exists(key, file, storage):
            found = f"{key} is `{file}`, and there is nothing there."
            names = ", `imagenet` or `none`" if key == "base.weights" else ""
            raise BackboneError(found, advice=f"Give an existing file or URI{names}.")


def _exists(key: str, place: str, storage: StorageConfig) -> bool:
    """Whether a path exists, or a bucket has this object or any object under this prefix."""
    if not place.startswith("s3://"):
        return "://" in place or path_here(place).exists()
    is_file = place.lower().endswith(_FILES)
    folder, name = place.rsplit("/", 1) if is_file else (place, "")
    try:
        store = open_store(storage.model_copy(update={"uri": folder}))
        return store.exists(name) if is_file else next(iter(store.list()), None) is not None
    except StorageError as error:
        raise type(error)(
            f"{key} is `{place}`, which cannot be looked for. {error.message}", advice=f"Correct {key}. {error.advice}"
        ) from error
