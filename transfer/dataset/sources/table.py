"""Tables of paths and class names, optionally with splits and groups; and tables that contain the images.

A row group of a table with images can only be read as a whole, and shards need images in any order. So these images are
written to files first.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from transfer.dataset.manifest import MISSING, NO_LABEL, NO_PATH, UNREADABLE, Reject
from transfer.dataset.sources.base import Entry, Label, key_of, name_of, normal_class_name, read_file, read_object
from transfer.dataset.sources.fetch import split_s3
from transfer.dataset.sources.tabular import Table
from transfer.dataset.splits import nearest_split, split_named
from transfer.errors import DatasetError
from transfer.storage import sha256_hex

_INDEX = "index.parquet"
_TEXTS = ("key", "label", "split", "group", "sha256")
_SCHEMA = pa.schema([*((name, pa.string()) for name in _TEXTS), ("size_bytes", pa.int64())])
_BATCH = 10_000


@dataclass(frozen=True)
class UnpackedSource:
    """Images of a table, in files named by their keys, with an index."""

    root: str
    table: Table

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": "table", "uri": self.table.uri}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        with pq.ParquetFile(Path(self.root, _INDEX)) as index:
            for batch in index.iter_batches():
                yield from (_listed(**row) for row in batch.to_pylist())

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return read_file(_file_of(self.root, key), key, max_size_bytes=max_size_bytes)

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return True


def unpack_images(table: Table, column: str, folder: Path, *, max_size_bytes: int) -> UnpackedSource:
    """Write the images in a column of a table into the empty `folder`.

    The key of an image is its path in the table if all images have different paths, else the number of its row. Raises
    DatasetError, also for more bytes than `max_size_bytes`.
    """
    paths = list(table.image_paths(column))
    has_keys = None not in paths and "" not in paths and len({*paths}) == len(paths)
    keys = (key_of(str(path)) for path in paths) if has_keys else (f"row-{row:08d}" for row in range(len(paths)))
    size_bytes = 0

    def written() -> Iterator[dict[str, Any]]:
        nonlocal size_bytes
        for number, (key, row) in enumerate(zip(keys, table.images(column), strict=True), start=1):
            data, label, word, group = row
            size_bytes += len(data or b"")
            if size_bytes > max_size_bytes:
                raise DatasetError(
                    f"The images in {table.uri} exceed dataset.source_max_size_bytes, {max_size_bytes:,} bytes.",
                    advice="Raise dataset.source_max_size_bytes if it is what you expect.",
                )
            if data is not None:
                _file_of(folder, key).write_bytes(data)
            sha256 = sha256_hex(data) if data is not None else None
            split = split_of(word, table, number)
            yield {
                "key": key,
                "label": label,
                "split": split,
                "group": (group or "").strip() or None,
                "size_bytes": len(data or b""),
                "sha256": sha256,
            }

    rows = written()
    with pq.ParquetWriter(folder / _INDEX, _SCHEMA) as index:
        while batch := list(islice(rows, _BATCH)):
            index.write_table(pa.Table.from_pylist(batch, _SCHEMA))
    return UnpackedSource(str(folder), table)


def _listed(
    *, key: str, label: str | None, split: str | None, group: str | None, size_bytes: int, sha256: str | None
) -> Entry | Reject:
    if label is None or not normal_class_name(label):
        return Reject(key, NO_LABEL, "the row of the table has no label")
    if sha256 is None:
        return Reject(key, UNREADABLE, "the row of the table has no bytes of it")
    return Entry(key, normal_class_name(label), size_bytes, sha256, split=split, group=group)


def _file_of(folder: str | Path, key: str) -> Path:
    return Path(folder, hashlib.sha256(key.encode()).hexdigest())


@dataclass(frozen=True)
class TableSource:
    """A table of paths and class names. The key of an image is its path as it stands in the table."""

    table: Table

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": "table", "uri": self.table.uri}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        for number, (path, label, split, group) in enumerate(self.table.rows(), start=1):
            if not path:
                yield Reject(f"row {number}", NO_PATH, f"row {number} of the table has no path")
            elif not label or not normal_class_name(label):
                yield Reject(key_of(path), NO_LABEL, f"row {number} of the table has no label")
            else:
                yield Entry(
                    key_of(path),
                    normal_class_name(label),
                    -1,
                    split=split_of(split, self.table, number),
                    group=(group or "").strip() or None,
                )

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        path = name_of(key)
        found = self._read(path, key, max_size_bytes)
        if "\\" in path and isinstance(found, Reject) and found.reason == MISSING:
            # The table was written on Windows. A file with a backslash in its name would have been found above.
            return self._read(path.replace("\\", "/"), key, max_size_bytes)
        return found

    def is_local(self, key: str) -> bool:  # noqa: D102
        return not self.place(name_of(key)).startswith("s3://")

    def _read(self, path: str, key: str, max_size_bytes: int) -> bytes | Reject:
        place = self.place(path)
        if place.startswith(("http://", "https://")):
            return Reject(key, UNREADABLE, "a web address, and tables name files and s3:// objects")
        if not place.startswith("s3://"):
            if self.table.is_in_bucket:
                return Reject(key, UNREADABLE, "a path on a local disk, in a table that lies in a bucket")
            return read_file(place, key, max_size_bytes=max_size_bytes)
        bucket, _, name = place.removeprefix("s3://").partition("/")
        storage = self.table.storage.model_copy(update={"uri": f"s3://{bucket}"})
        return read_object(storage, name, key, max_size_bytes=max_size_bytes)

    def place(self, path: str) -> str:
        """The absolute path, or full address, of a path in the table."""
        if path.startswith("file://"):
            return unquote(urlsplit(path).path)
        if path.startswith(("s3://", "/", "http://", "https://")):
            return path
        # All parts lie in one folder.
        folder = split_s3(self.table.files[0])[0]
        if not self.table.is_in_bucket:
            return f"{folder}/{path}"
        bucket, _, prefix = folder.removeprefix("s3://").partition("/")
        return f"s3://{bucket}/{posixpath.normpath(posixpath.join(prefix, path))}"


def split_of(word: str | None, table: Table, number: int) -> str | None:
    """The split of the word in row `number`; None if there is no word. Raises DatasetError for an unknown word."""
    if word is None or not word.strip():
        return None
    split = split_named(word)
    if split is None:
        nearest = nearest_split(word)
        raise DatasetError(
            f"The table {table.uri} has `{word}` in row {number} of the column `{table.split_column}`, "
            f"which is no split{f'; did you mean `{nearest}`?' if nearest else '.'}",
            advice="Write train, validation (val, valid, dev) or test; a cell without a word counts as train.",
        )
    return split


def none_there(table: str, path_column: str, rejects: Sequence[Reject], *, images: Sequence[str]) -> DatasetError:
    """The error for a table of which no file could be read: one sentence instead of one line for each row.

    `images`: the columns of the table that contain images.
    """
    shown = ", ".join(f"`{reject.key}`" for reject in rejects[:3])
    return DatasetError(
        f"None of the {len(rejects):,} files that the column `{path_column}` of {table} names could be read, such as "
        f"{shown}: {rejects[0].detail}."
        + "".join(f" The table has images in the column `{name}`: `dataset.path_column: {name}`." for name in images),
        advice="Paths are whole names of files, relative to the folder of the table, absolute, file:// or s3://. "
        "dataset.path_column names another column.",
    )
