"""Predictions as tables, and tables as files: Parquet, CSV or JSON Lines, by the suffix of the file.

A table has the columns `key`, `class_name`, `class_index`, `confidence` and `error`, then `probabilities` (in the order
of the model's classes) or the columns `class_1`, `probability_1`, … of the most probable classes, then `embedding`.
`error` is null for a predicted image; for any other image, all columns except `key` and `error` are null. Nothing here
needs TensorFlow, so a driver writes files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from transfer.catalog.model import ModelVersion
from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.dataset.manifest import Reject
from transfer.errors import AlreadyExistsError, ConfigError, RegistryError
from transfer.storage import Store, open_store

Row = dict[str, Any]
Outputs = tuple[np.ndarray, np.ndarray | None]
"""About an image: the probability of each class, float32 [classes], and its embedding, float32 [features]."""

SUFFIXES = (".parquet", ".csv", ".jsonl")
_KEY, _ERROR = pa.field("key", pa.string()), pa.field("error", pa.string())
_CLASS = [pa.field("class_name", pa.string()), pa.field("class_index", pa.int32())]


@dataclass(frozen=True)
class Columns:
    """What a prediction says."""

    top_k: int | None = None
    """Number of the most probable classes that are named with their probabilities; None: all probabilities."""
    embeddings: bool = False
    """Whether the features of the base are among them, in half precision."""

    def check(self, version: ModelVersion, output: str | None) -> None:
        """Raise ConfigError if a version has fewer classes than are to be named, or the output no place for them."""
        classes = len(version.classes)
        if self.top_k is not None and not 1 <= self.top_k <= classes:
            raise ConfigError(
                f"--top-k is {self.top_k}, and version {version.number} of {version.model} has {classes} classes.",
                advice=f"Give a number from 1 to {classes}.",
            )
        if self.embeddings and output is not None and output.endswith(".csv"):
            raise ConfigError(
                f"--embeddings has lists of numbers, and --output is {output}.",
                advice="Write them to a folder, or to a file that ends in .parquet or .jsonl.",
            )


def predictions_table(
    answered: Sequence[tuple[str, Outputs | Reject]],
    version: ModelVersion,
    columns: Columns,
    *,
    embedding_size: int | None = None,
) -> pa.Table:
    """The predictions of some images as a table, with the classes and the version in its metadata.

    `embedding_size`: number of features, if `columns` has embeddings. Raises RegistryError for features beyond the
    range of half precision.
    """
    classes = version.classes
    failed = np.array([isinstance(answer, Reject) for _, answer in answered], bool)
    probabilities = np.zeros([len(answered), len(classes)], np.float32)
    for row, (_, answer) in enumerate(answered):
        if not isinstance(answer, Reject):
            probabilities[row] = answer[0]
    order = _most_probable(probabilities, columns.top_k or 1)
    chosen = np.take_along_axis(probabilities, order, axis=1)
    names = np.array(classes, object)
    said = [f"{answer.reason}: {answer.detail}" if isinstance(answer, Reject) else None for _, answer in answered]
    made: list[tuple[pa.Field, Any]] = [
        (_KEY, pa.array([key for key, _ in answered], pa.string())),
        (_CLASS[0], pa.array(names[order[:, 0]], pa.string(), mask=failed)),
        (_CLASS[1], pa.array(order[:, 0], mask=failed)),
        (pa.field("confidence", pa.float32()), pa.array(chosen[:, 0], mask=failed)),
        (_ERROR, pa.array(said, pa.string())),
    ]
    if columns.top_k is None:
        rows = [None if is_failed else row for row, is_failed in zip(probabilities, failed, strict=True)]
        made.append((pa.field("probabilities", pa.list_(pa.float32())), pa.array(rows, pa.list_(pa.float32()))))
    for place in range(columns.top_k or 0):
        named = pa.array(names[order[:, place]], pa.string(), mask=failed)
        made.append((pa.field(f"class_{place + 1}", pa.string()), named))
        probable = pa.array(chosen[:, place], mask=failed)
        made.append((pa.field(f"probability_{place + 1}", pa.float32()), probable))
    if embedding_size is not None:
        kind = pa.list_(pa.float16(), embedding_size)
        made.append((pa.field("embedding", kind), _embeddings(answered, failed, embedding_size)))
    metadata = {
        "classes": json.dumps(classes, ensure_ascii=False),
        "model": version.model,
        "version": str(version.number),
    }
    return pa.table([array for _, array in made], schema=pa.schema([field for field, _ in made], metadata=metadata))


def _most_probable(probabilities: np.ndarray, count: int) -> np.ndarray:
    """Indices of the most probable classes, int32 [n, count]; of equally probable ones, the first is first."""
    if count == 1:
        return np.asarray(np.argmax(probabilities, axis=1, keepdims=True), np.int32)
    order: np.ndarray = np.argsort(-probabilities, axis=1, kind="stable")[:, :count].astype(np.int32)
    return order


def _embeddings(answered: Sequence[tuple[str, Outputs | Reject]], failed: np.ndarray, size: int) -> Any:
    values = np.zeros([len(answered), size], np.float16)
    for row, (key, answer) in enumerate(answered):
        if isinstance(answer, Reject) or answer[1] is None:
            continue
        try:
            with np.errstate(over="raise"):
                values[row] = answer[1].astype(np.float16)
        except FloatingPointError:
            raise RegistryError(
                f"A feature of {key} is {np.abs(answer[1]).max():g}, and the largest number in half precision is "
                "65,504.",
                advice="Predict without --embeddings.",
            ) from None
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size, mask=pa.array(failed))


def failures_in(table: pa.Table) -> int:
    """Number of images without a prediction."""
    return len(table) - int(table["error"].null_count)


def as_json(table: pa.Table, classes: Sequence[str]) -> list[Row]:
    """The rows with JSON types only; the probabilities of all classes are a dictionary by class."""
    rows: list[Row] = table.to_pylist()
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = _shortest(np.float32(value))
        if row.get("probabilities") is not None:
            numbers = [_shortest(np.float32(value)) for value in row["probabilities"]]
            row["probabilities"] = dict(zip(classes, numbers, strict=True))
        if row.get("embedding") is not None:
            row["embedding"] = [_shortest(np.float16(value)) for value in row["embedding"]]
    return rows


@contextmanager
def predictions_file(path: Path, classes: Sequence[str]) -> Iterator[Callable[[pa.Table], None]]:
    """Open a new file in the format of its suffix. Yields a function that appends tables, and does not keep them."""
    with ExitStack() as stack:
        writer: Any = None

        def write(table: pa.Table) -> None:
            nonlocal writer
            if path.suffix == ".jsonl":
                writer = writer or stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
                rows = as_json(table, classes)
                writer.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                return
            opened = {".parquet": pq.ParquetWriter, ".csv": pa_csv.CSVWriter}[path.suffix]
            flat = _flat(table, classes) if path.suffix == ".csv" else table
            writer = writer or stack.enter_context(opened(path, flat.schema))
            writer.write_table(flat)

        yield write


def as_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def is_folder(output: str) -> bool:
    """Whether an output is a folder of parts: it ends with a slash, or its name has no suffix."""
    return output.endswith("/") or "." not in output.rpartition("/")[2]


def check_file(output: str, storage: StorageConfig, *, overwrite: bool) -> None:
    """Refuse an output file before the job starts. `storage`: options of a bucket.

    Raises ConfigError for an unknown suffix, AlreadyExistsError if the file exists and `overwrite` is False,
    StorageError.
    """
    if not output.endswith(SUFFIXES):
        raise ConfigError(
            f"--output is {output}, and its suffix stands for no format that predictions are written in.",
            advice=f"End it in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or in a slash for a folder of parts.",
        )
    store, name = _place(output, storage)
    if not overwrite and store.exists(name):
        raise _taken(output)


def deliver(file: Path, output: str, storage: StorageConfig, *, overwrite: bool) -> None:
    """Copy a finished file to `output`. Raises AlreadyExistsError as `check_file` does, StorageError."""
    store, name = _place(output, storage)
    if overwrite:
        store.replace(name, file)
        return
    try:
        store.put(name, file)
    except AlreadyExistsError:
        # Another process wrote the file during prediction.
        raise _taken(output) from None


def _taken(output: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"The output {output} exists already.", advice="Replace it with --overwrite, or give another --output."
    )


def _place(output: str, storage: StorageConfig) -> tuple[Store, str]:
    """The store of an output, and its name in that store."""
    where = output if "://" in output else str(path_here(output).absolute())
    folder, _, name = where.rpartition("/")
    return open_store(storage.model_copy(update={"uri": folder or "/"})), name


def _flat(table: pa.Table, classes: Sequence[str]) -> pa.Table:
    """The table with one column for each class's probability, as CSV has no lists."""
    if "probabilities" not in table.column_names:
        return table.replace_schema_metadata(None)
    lists = table["probabilities"].combine_chunks()
    failed = np.asarray(lists.is_null())
    values = np.zeros([len(table), len(classes)], np.float32)
    values[~failed] = lists.flatten().to_numpy().reshape(-1, len(classes))
    flat = table.drop_columns("probabilities").replace_schema_metadata(None)
    for index, name in enumerate(classes):
        flat = flat.append_column(f"probability_{name}", pa.array(values[:, index], mask=failed))
    return flat


def _shortest(value: np.floating[Any]) -> float:
    """The number with the fewest digits that identify the value: 0.9, not 0.8999999761581421."""
    return float(str(value))
