"""Sources of images behind one interface: class folders, archives, tables, TFDS and the digits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from transfer.config import DatasetConfig, StorageConfig
from transfer.config.paths import path_here
from transfer.dataset.sources.archive import ARCHIVE_SUFFIXES, unpack
from transfer.dataset.sources.base import Entry, Label, Source, key_of, store_of
from transfer.dataset.sources.digits import DigitsSource, write_digits
from transfer.dataset.sources.fetch import fetch, without_secrets
from transfer.dataset.sources.folder import BucketFolderSource, FolderSource
from transfer.dataset.sources.table import TableSource, UnpackedSource, unpack_images
from transfer.dataset.sources.tabular import Table, is_table, parts_among
from transfer.dataset.sources.tfds import write_tfds
from transfer.dataset.sources.walk import SelectedSource, is_folder, scan
from transfer.errors import ConfigError, DatasetError, StorageError

__all__ = ["Entry", "Label", "Source", "is_packed", "open_source", "unused_columns", "write_digits"]

_WEB = ("http://", "https://")
_REMOTE = ("s3://", *_WEB)


def is_packed(source: str) -> bool:
    """Whether the content of a source is known only after unpacking: an archive, or a dataset of TFDS."""
    return source.startswith("tfds:") or without_secrets(source).lower().endswith(ARCHIVE_SUFFIXES)


@contextmanager
def open_source(config: DatasetConfig, storage: StorageConfig) -> Iterator[Source]:
    """Open `config.source` while the block runs; archives and TFDS are written to a temporary folder meanwhile.

    `storage`: the S3 service that `s3://` addresses of the source refer to. Raises DatasetError if there is no such
    source or it is refused, StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-source-") as folder:
        if is_packed(config.source):
            # Check keys before the source is fetched and unpacked.
            _check_keys(config, "tfds" if config.source.startswith("tfds:") else "archive")
        with _errors_of_the_source(config):
            source = _open(config, storage, Path(folder))
        _check_keys(config, source.description["kind"])
        yield SelectedSource(source, config) if config.exclude or config.classes else source


def unused_columns(source: Source) -> dict[str, list[str]]:
    """Columns of a table that the configuration does not use although it could, by the key that would use them."""
    if isinstance(source, SelectedSource):
        source = source.source
    return source.table.unused_columns() if isinstance(source, TableSource | UnpackedSource) else {}


@contextmanager
def _errors_of_the_source(config: DatasetConfig) -> Iterator[None]:
    """Let errors of a bucket name `dataset.source`; their text would send the user to `storage.uri`."""
    try:
        yield
    except (ConfigError, StorageError) as error:
        raise type(error)(
            f"dataset.source is {without_secrets(config.source)}, which cannot be read. "
            + error.message.replace("storage.uri", "dataset.source"),
            advice=error.advice.replace("storage.uri", "dataset.source"),
        ) from error


def _check_keys(config: DatasetConfig, kind: str) -> None:
    """Refuse keys that this kind of source does not use. Raises DatasetError."""
    of_folders, of_tables = ("subfolder", "splits"), ("split_column", "group_column")
    unused = {"folder": of_tables, "archive": of_tables, "table": of_folders}.get(kind, (*of_folders, *of_tables))
    for key in unused:
        if getattr(config, key) is not None:
            kinds = "a folder, an s3:// prefix or an archive" if key in of_folders else "a table"
            raise DatasetError(
                f"dataset.{key} is set, and dataset.source is `{without_secrets(config.source)}`.",
                advice=f"That key is for {kinds}. Leave it out"
                + ("; dataset.group_pattern makes groups of any source." if key == "group_column" else "."),
            )


def _open(config: DatasetConfig, storage: StorageConfig, folder: Path) -> Source:
    splits: Mapping[str, str] | None = None if config.splits is None else dict[str, str](config.splits.items())
    uri, subfolder = config.source, f"/{config.subfolder}" if config.subfolder else ""
    if uri == "digits":
        return DigitsSource()
    if uri.startswith("tfds:"):
        keep_splits = config.tfds_splits == "keep"
        folders, left_out = write_tfds(uri.removeprefix("tfds:"), folder, keep_splits=keep_splits)
        return FolderSource(str(folder), kind="tfds", uri=uri, splits=folders, left_out=left_out)
    if not uri.startswith(_REMOTE):
        uri = str(path_here(uri).absolute())
        if not Path(uri).exists():
            raise _no_source(config, "and there is nothing there")
        if Path(uri).is_dir():
            root = _inside(uri, config)
            parts = parts_among(f"{item.name}/" if is_folder(item) else item.name for item in scan(root))
            return _table(root, parts, config, storage, folder) if parts else FolderSource(root, splits=splits)
    shown = without_secrets(uri)
    if shown.lower().endswith(ARCHIVE_SUFFIXES):
        root = _inside(str(_unpacked(uri, config, storage, folder)), config)
        return FolderSource(root, kind="archive", uri=shown + subfolder, splits=splits)
    if is_table(shown) and not uri.startswith(_WEB):
        return _table(uri, [], config, storage, folder)
    if uri.startswith("s3://"):
        prefix = storage.model_copy(update={"uri": uri.rstrip("/") + subfolder if subfolder else uri})
        parts = parts_among(item.name for item in store_of(prefix).list())
        return _table(prefix.uri, parts, config, storage, folder) if parts else BucketFolderSource(prefix, splits)
    raise _no_source(config, "which is neither a folder nor a file of a known kind")


def _table(uri: str, parts: list[str], config: DatasetConfig, storage: StorageConfig, folder: Path) -> Source:
    files = tuple(f"{uri.rstrip('/')}/{part}" for part in parts) or (uri,)
    columns = (config.split_column, config.group_column)
    table = Table(uri, files, config.path_column, config.label_column, storage, *columns)
    if column := table.image_column():
        return unpack_images(table, column, folder, max_size_bytes=config.source_max_size_bytes)
    return TableSource(table)


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


def _inside(root: str, config: DatasetConfig) -> str:
    """The folder that `dataset.subfolder` names. Raises DatasetError if there is no such folder."""
    if config.subfolder is None:
        return root
    folder = Path(root, config.subfolder)
    if not folder.is_dir():
        found = ", ".join(f"`{key_of(item.name)}`" for item in sorted(Path(root).iterdir())[:12] if item.is_dir())
        raise DatasetError(
            f"dataset.subfolder is `{config.subfolder}`, and there is no such folder in "
            f"{without_secrets(config.source)}; the folders there are {found or 'none'}.",
            advice="Correct dataset.subfolder. In an archive with one folder around all others, it is one in that.",
        )
    return str(folder)


def _no_source(config: DatasetConfig, found: str) -> DatasetError:
    return DatasetError(
        f"dataset.source is `{without_secrets(config.source)}`, {found}.",
        advice="Give an existing folder, an archive (.zip, .tar.gz), a table (.csv, .parquet), an s3:// prefix, the "
        "https:// address of an archive, `tfds:NAME` or `digits`.",
    )
