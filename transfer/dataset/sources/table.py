"""A CSV or Parquet table of paths and class names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from transfer.config import StorageConfig
from transfer.dataset.rejects import NO_LABEL, NO_PATH, UNREADABLE, Reject
from transfer.dataset.sources.base import Entry, Label, read_file, read_object, store_of
from transfer.dataset.sources.fetch import split_s3
from transfer.dataset.sources.keys import key_of, name_of, normal_class_name
from transfer.errors import DatasetError, ObjectNotFoundError

TABLE_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class TableSource:
    """Rows of a path and a class name. An image's key is its path as the table has it."""

    uri: str
    path_column: str
    label_column: str
    storage: StorageConfig
    """Says which service `s3://` means; its own address does not matter here."""

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": "table", "uri": self.uri}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        for number, (path, label) in enumerate(self._rows(), start=1):
            if not path:
                yield Reject(f"row {number}", NO_PATH, f"row {number} of the table has no path")
            elif not label or not normal_class_name(label):
                yield Reject(key_of(path), NO_LABEL, f"row {number} of the table has no label")
            else:
                yield Entry(key_of(path), normal_class_name(label), -1)

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        place = self._place(name_of(key))
        if not place.startswith("s3://"):
            if self._is_in_bucket:
                return Reject(key, UNREADABLE, "a path on a local disk, in a table that lies in a bucket")
            return read_file(place, key, max_size_bytes=max_size_bytes)
        bucket, _, name = place.removeprefix("s3://").partition("/")
        storage = self.storage.model_copy(update={"uri": f"s3://{bucket}"})
        return read_object(storage, name, key, max_size_bytes=max_size_bytes)

    def is_local(self, key: str) -> bool:  # noqa: D102
        return not self._place(name_of(key)).startswith("s3://")

    @property
    def _is_in_bucket(self) -> bool:
        return self.uri.startswith("s3://")

    def _place(self, path: str) -> str:
        """Where a path of the table leads: an absolute path, or an object's full address."""
        if path.startswith(("s3://", "/")):
            return path
        if not self._is_in_bucket:
            return str(Path(self.uri).parent / path)
        bucket, _, prefix = split_s3(self.uri)[0].removeprefix("s3://").partition("/")
        return f"s3://{bucket}/{posixpath.normpath(posixpath.join(prefix, path))}"

    def _rows(self) -> Iterator[tuple[str | None, str | None]]:
        for batch in self._read_table().to_batches(max_chunksize=10_000):
            yield from zip(batch[0].to_pylist(), batch[1].to_pylist(), strict=True)

    def _read_table(self) -> pa.Table:
        try:
            table = self._read_parquet() if self.uri.endswith(".parquet") else self._read_csv()
            return table.cast(pa.schema([(self.path_column, pa.string()), (self.label_column, pa.string())]))
        except (FileNotFoundError, ObjectNotFoundError) as error:
            raise DatasetError(
                f"dataset.source is {self.uri}, and there is nothing there.", advice="Check the path."
            ) from error
        except pa.ArrowException as error:
            raise DatasetError(
                f"The table {self.uri} cannot be read: {error}.",
                advice="A .csv is UTF-8 with a header line and commas; a .parquet has a column of paths and one of "
                "class names.",
            ) from error

    def _read_csv(self) -> pa.Table:
        with self._open() as file, csv.open_csv(file) as reader:
            self._check_columns(reader.schema.names)
        columns = {self.path_column: pa.string(), self.label_column: pa.string()}
        options = csv.ConvertOptions(
            column_types=columns, include_columns=list(columns), null_values=[""], strings_can_be_null=True
        )
        with self._open() as file:
            return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)

    def _read_parquet(self) -> pa.Table:
        with self._open() as file, pq.ParquetFile(file) as parquet:
            self._check_columns(parquet.schema_arrow.names)
            return parquet.read([self.path_column, self.label_column]).select([self.path_column, self.label_column])

    def _open(self) -> pa.NativeFile:
        if not self._is_in_bucket:
            return pa.OSFile(self.uri)
        folder, name = split_s3(self.uri)
        return store_of(self.storage.model_copy(update={"uri": folder})).open(name)

    def _check_columns(self, found: list[str]) -> None:
        for option, column in (("path_column", self.path_column), ("label_column", self.label_column)):
            if found.count(column) != 1:
                wrong = "two columns" if column in found else "no column"
                raise DatasetError(
                    f"The table {self.uri} has {wrong} `{column}`; its columns are {', '.join(found)}.",
                    advice=f"Set dataset.{option} to the right one.",
                )
