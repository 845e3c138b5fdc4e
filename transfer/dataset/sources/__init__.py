"""Where images come from: class folders, archives, tables, TFDS and the digits, all behind one small interface."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transfer.config import DatasetConfig, StorageConfig
from transfer.config.paths import path_here
from transfer.dataset.sources.archive import ARCHIVE_SUFFIXES, unpack
from transfer.dataset.sources.base import Entry, Label, Source
from transfer.dataset.sources.digits import DigitsSource, write_digits
from transfer.dataset.sources.fetch import fetch, without_secrets
from transfer.dataset.sources.folder import BucketFolderSource, FolderSource
from transfer.dataset.sources.table import TABLE_SUFFIXES, TableSource
from transfer.dataset.sources.tfds import write_tfds
from transfer.errors import DatasetError

__all__ = ["Entry", "Label", "Source", "open_source", "write_digits"]

_WEB = ("http://", "https://")
_REMOTE = ("s3://", *_WEB)


@contextmanager
def open_source(config: DatasetConfig, storage: StorageConfig) -> Iterator[Source]:
    """Open `config.source` while the block runs; archives and TFDS are written to a temporary folder meanwhile.

    `storage` says which service `s3://` means: the source's bucket is looked for where the storage is. Raises
    DatasetError when there is no such source or it is refused, StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-source-") as folder:
        yield _open(config, storage, Path(folder))


def _open(config: DatasetConfig, storage: StorageConfig, folder: Path) -> Source:
    uri = config.source
    if uri == "digits":
        return DigitsSource()
    if uri.startswith("tfds:"):
        write_tfds(uri.removeprefix("tfds:"), folder)
        return FolderSource(str(folder), kind="tfds", uri=uri)
    if not uri.startswith(_REMOTE):
        uri = str(path_here(uri).absolute())
        if not Path(uri).exists():
            raise _no_source(config, "and there is nothing there")
        if Path(uri).is_dir():
            return FolderSource(uri)
    shown = without_secrets(uri)
    if shown.lower().endswith(ARCHIVE_SUFFIXES):
        return FolderSource(str(_unpacked(uri, config, storage, folder)), kind="archive", uri=shown)
    if shown.lower().endswith(TABLE_SUFFIXES) and not uri.startswith(_WEB):
        return TableSource(uri, config.path_column, config.label_column, storage)
    if uri.startswith("s3://"):
        return BucketFolderSource(storage.model_copy(update={"uri": uri}))
    raise _no_source(config, "which is neither a folder nor a file of a known kind")


def _unpacked(uri: str, config: DatasetConfig, storage: StorageConfig, folder: Path) -> Path:
    target = folder / "unpacked"
    target.mkdir()
    if not uri.startswith(_REMOTE):
        return unpack(Path(uri), target, uri=uri, max_size_bytes=config.source_max_size_bytes)
    archive = folder / "archive"
    fetch(uri, archive, storage=storage, max_size_bytes=config.source_max_size_bytes)
    root = unpack(archive, target, uri=without_secrets(uri), max_size_bytes=config.source_max_size_bytes)
    archive.unlink()
    return root


def _no_source(config: DatasetConfig, found: str) -> DatasetError:
    return DatasetError(
        f"dataset.source is `{without_secrets(config.source)}`, {found}.",
        advice="Give an existing folder, an archive (.zip, .tar.gz), a table (.csv, .parquet), an s3:// prefix, the "
        "https:// address of an archive, `tfds:NAME` or `digits`.",
    )
