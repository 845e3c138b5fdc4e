"""Tables as files: CSV with any usual separator, Parquet, and folders or prefixes of Parquet parts."""

from __future__ import annotations

import csv as python_csv
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from transfer.config import StorageConfig
from transfer.dataset.sources.base import store_of
from transfer.dataset.sources.fetch import nothing_there, split_s3
from transfer.dataset.sources.walk import SIDECAR_SUFFIXES, is_ignored
from transfer.errors import DatasetError, ObjectNotFoundError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_PARQUET = ".parquet"
# The comma is first, because names in a header may contain the other separators.
_DELIMITERS = ",;\t|"
_HEADER_SIZE_BYTES = 64 * 1024
_USUAL_COLUMNS = {
    "split_column": frozenset({"split", "splits", "subset", "partition", "set"}),
    "group_column": frozenset(
        {"group", "group_id", "patient", "patient_id", "patientid", "subject", "subject_id", "camera", "fold"}
    ),
}
"""Usual names of such columns."""

logger = logging.getLogger(__name__)


def is_table(uri: str) -> bool:
    """Whether an address is a table, by its name."""
    return uri.lower().endswith(TABLE_SUFFIXES)


def parts_among(names: Iterable[str]) -> list[str]:
    """The Parquet parts among the names in a folder; none if there are other files, apart from descriptions.

    A name with a slash is a folder or in one. Names are consumed only as far as necessary.
    """
    parts = []
    for name in names:
        if is_ignored(name.rstrip("/")) or name.lower().endswith(SIDECAR_SUFFIXES):
            continue
        if "/" in name or not name.lower().endswith(_PARQUET):
            return []
        parts.append(name)
    return sorted(parts)


@dataclass(frozen=True)
class Table:
    """A table in one file or in several parts."""

    uri: str
    """The address that the user gave."""
    files: tuple[str, ...]
    """The file, or all parts: paths or `s3://` addresses."""
    path_column: str
    label_column: str | None
    storage: StorageConfig
    """The S3 service that `s3://` refers to; its `uri` is not used here."""
    split_column: str | None = None
    group_column: str | None = None

    @property
    def is_in_bucket(self) -> bool:
        """Whether the table itself is an object."""
        return self.uri.startswith("s3://")

    def image_column(self) -> str | None:
        """The column that contains the images; None if the table has paths.

        It is `path_column`, or the only column of images if no column has this name. Raises DatasetError.
        """
        if not self.files[0].lower().endswith(_PARQUET):
            return None
        with self._reading(self.files[0]) as parquet:
            schema = parquet.schema_arrow
        images = _image_columns(schema)
        if self.path_column in schema.names:
            return self.path_column if self.path_column in images else None
        return images[0] if len(images) == 1 else None

    def unused_columns(self) -> dict[str, list[str]]:
        """Columns that the configuration does not use although it could, by the key that would use them.

        They have usual names for splits or groups, or contain images where `path_column` has paths. Raises
        DatasetError.
        """
        file = self.files[0]
        if file.lower().endswith(_PARQUET):
            with self._reading(file) as parquet:
                names, images = parquet.schema_arrow.names, _image_columns(parquet.schema_arrow)
        else:
            with self._errors(file):
                (_, names), images = self._header(file), []
        unused = {
            option: [name for name in names if name.strip().casefold() in usual and name not in self._names]
            for option, usual in _USUAL_COLUMNS.items()
            if option not in self._columns
        }
        if self.path_column in names and self.path_column not in images:
            unused["path_column"] = [name for name in images if name not in self._names]
        return {option: columns for option, columns in unused.items() if columns}

    def rows(self) -> Iterator[tuple[str | None, ...]]:
        """Path, label, split and group of each row as text, None for an empty cell. Raises DatasetError."""
        for number, file in enumerate(self.files):
            texts = self._texts(file)
            if number == 0:
                self._warn_of_unused()
            for batch in texts.to_batches(max_chunksize=10_000):
                columns, nothing = batch.to_pydict(), [None] * len(batch)
                named = (self.path_column, self.label_column, self.split_column, self.group_column)
                yield from zip(*(columns[name] if name else nothing for name in named), strict=True)

    def paths(self) -> Iterator[str | None]:
        """The path of each row, None for an empty cell, where nothing else counts. Raises DatasetError."""
        for file in self.files:
            for batch in self._texts(file).to_batches(max_chunksize=10_000):
                yield from batch.column(self.path_column).to_pylist()

    def image_paths(self, column: str) -> Iterator[str | None]:
        """The path of each image in the table, None without one. Images are not read."""
        for file in self.files:
            with self._reading(file) as parquet:
                if not pa.types.is_struct(parquet.schema_arrow.field(column).type):
                    yield from [None] * parquet.metadata.num_rows
                    continue
                for batch in parquet.iter_batches(columns=[f"{column}.path"]):
                    found = batch.column(0)
                    yield from found.field("path").to_pylist() if found.type.num_fields else [None] * len(found)

    def images(self, column: str) -> Iterator[tuple[bytes | None, str | None, str | None, str | None]]:
        """Bytes, label, split and group of each row, in the order of `image_paths`. Raises DatasetError."""
        named = {key: name for key, name in self._columns.items() if key != "path_column"}
        self._warn_of_unused()
        for file in self.files:
            with self._reading(file) as parquet:
                schema = parquet.schema_arrow
                self._check_columns(schema.names, named)
                for batch in parquet.iter_batches(batch_size=64, columns=[column, *dict.fromkeys(named.values())]):
                    images = batch.column(column)
                    data = images.field("bytes") if pa.types.is_struct(images.type) else images
                    texts = [
                        _texts_of(batch.column(name), schema, name).to_pylist() if name else [None] * len(batch)
                        for name in (self.label_column, self.split_column, self.group_column)
                    ]
                    yield from zip(data.to_pylist(), *texts, strict=True)

    def _texts(self, file: str) -> pa.Table:
        """The columns that are read, as text, by their names in the file."""
        if not file.lower().endswith(_PARQUET):
            return self._read_csv(file)
        with self._reading(file) as parquet:
            schema = parquet.schema_arrow
            self._check_columns(schema.names, self._columns)
            table = parquet.read(self._names)
            return pa.table([_texts_of(table[name], schema, name) for name in self._names], self._names)

    def _read_csv(self, file: str) -> pa.Table:
        options = csv.ConvertOptions(
            column_types=dict.fromkeys(self._names, pa.string()),
            include_columns=self._names,
            null_values=[""],
            strings_can_be_null=True,
        )
        with self._errors(file):
            delimiter, names = self._header(file)
            if names:
                self._check_columns(names, self._columns)
            parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            with self._open(file) as opened:
                return csv.read_csv(opened, parse_options=parse, convert_options=options)

    def _header(self, file: str) -> tuple[str, list[str]]:
        """The separator that finds most columns in the header, and the columns; none of an empty file."""
        with self._open(file) as opened:
            start = opened.read(_HEADER_SIZE_BYTES).decode("utf-8-sig", errors="replace")
        wanted = {*self._names}
        headers = {each: next(python_csv.reader(StringIO(start), delimiter=each), []) for each in _DELIMITERS}
        best = max(headers, key=lambda delimiter: (len(wanted & {*headers[delimiter]}), len(headers[delimiter])))
        return best, headers[best]

    @property
    def _columns(self) -> dict[str, str]:
        """Names of columns, by the keys of the configuration that set them."""
        columns = {
            "path_column": self.path_column,
            "label_column": self.label_column,
            "split_column": self.split_column,
            "group_column": self.group_column,
        }
        return {key: column for key, column in columns.items() if column}

    @property
    def _names(self) -> list[str]:
        """Names of the columns that are read, each once."""
        return list(dict.fromkeys(self._columns.values()))

    @contextmanager
    def _reading(self, file: str) -> Iterator[pq.ParquetFile]:
        with self._errors(file), self._open(file) as opened, pq.ParquetFile(opened) as parquet:
            yield parquet

    def _open(self, file: str) -> pa.NativeFile:
        if not self.is_in_bucket:
            return pa.OSFile(file)
        folder, name = split_s3(file)
        return store_of(self.storage.model_copy(update={"uri": folder})).open(name)

    @contextmanager
    def _errors(self, file: str) -> Iterator[None]:
        try:
            yield
        except ObjectNotFoundError as error:
            raise nothing_there(file, self.storage) from error
        except FileNotFoundError as error:
            raise DatasetError(
                f"dataset.source is {file}, and there is nothing there.", advice="Check the path."
            ) from error
        except pa.ArrowException as error:
            raise DatasetError(
                f"The table {file} cannot be read: {str(error).rstrip('.')}.",
                advice="A .csv is UTF-8 with a header line; a .parquet has a column of paths or of images and one of "
                "class names.",
            ) from error

    def _check_columns(self, found: Sequence[str], wanted: Mapping[str, str]) -> None:
        for option, column in wanted.items():
            if found.count(column) != 1:
                wrong = "two columns" if column in found else "no column"
                raise DatasetError(
                    f"The table {self.uri} has {wrong} `{column}`; its columns are {', '.join(found)}.",
                    advice=f"Set dataset.{option} to the right one.",
                )

    def _warn_of_unused(self) -> None:
        for option, columns in self.unused_columns().items():
            what = "images in " if option == "path_column" else ""
            named = what + ", ".join(f"`{name}`" for name in columns)
            logger.warning("The table %s has %s, which is not used; dataset.%s would.", self.uri, named, option)


def _image_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _is_image(field.type)]


def _is_image(kind: pa.DataType) -> bool:
    """Whether a column of this type contains files: bytes, or bytes and path as in Hugging Face's datasets."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind.fields)
    return any(is_of(kind) for is_of in (pa.types.is_binary, pa.types.is_large_binary))


def _texts_of(column: Any, schema: pa.Schema, name: str) -> Any:
    """A column as text: class names from Hugging Face's metadata if there are any, else the values."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = metadata.get("info", {}).get("features", {}).get(name, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if names is None or not pa.types.is_integer(column.type):
        return column.cast(pa.string())
    # -1 means no label.
    known = pc.if_else(pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names))), column, None)
    return pc.take(pa.array(names, pa.string()), known)
