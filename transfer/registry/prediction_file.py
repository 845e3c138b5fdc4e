"""Predictions as a file: Parquet, CSV or JSON Lines, by its suffix. Without TensorFlow, so a driver can check outputs.

A row is a dictionary of `key`, `class_name`, `class_index`, `confidence`, `error` and `probabilities` (float32, in the
order of the model's classes). `error` is None for a predicted image; for any other image, all except `key` and `error`
are None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from transfer.catalog.model import ModelVersion
from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.errors import AlreadyExistsError, ConfigError
from transfer.storage import Store, open_store

Row = dict[str, Any]

SUFFIXES = (".parquet", ".csv", ".jsonl")
_COLUMNS = [
    ("key", pa.string()),
    ("class_name", pa.string()),
    ("class_index", pa.int32()),
    ("confidence", pa.float32()),
    ("error", pa.string()),
]


def answered(key: str, probabilities: np.ndarray, classes: Sequence[str]) -> Row:
    """The row of a predicted image. `probabilities`: float32 [classes]."""
    index = int(np.argmax(probabilities))
    return {
        "key": key,
        "class_name": classes[index],
        "class_index": index,
        "confidence": probabilities[index],
        "error": None,
        "probabilities": probabilities,
    }


def failed(key: str, error: str) -> Row:
    """The row of an image that could not be predicted."""
    return {**dict.fromkeys(name for name, _ in _COLUMNS), "key": key, "error": error, "probabilities": None}


def as_json(row: Row, classes: Sequence[str]) -> Row:
    """The row with JSON types only; its probabilities are a dictionary by class."""
    if row["error"] is not None:
        return row
    numbers = [_shortest(value) for value in row["probabilities"]]
    by_class = dict(zip(classes, numbers, strict=True))
    return {**row, "confidence": numbers[row["class_index"]], "probabilities": by_class}


@contextmanager
def predictions_file(path: Path, version: ModelVersion) -> Iterator[Callable[[list[Row]], None]]:
    """Open a new file in the format of its suffix. Yields a function that appends rows; rows do not stay in memory."""
    classes = version.classes
    match path.suffix:
        case ".parquet":
            schema = pa.schema([*_COLUMNS, ("probabilities", pa.list_(pa.float32()))], metadata=_metadata(version))
            with pq.ParquetWriter(path, schema) as writer:
                yield lambda rows: writer.write_table(pa.Table.from_pylist(rows, schema))
        case ".csv":
            schema = pa.schema([*_COLUMNS, *((f"probability_{name}", pa.float32()) for name in classes)])
            with pa_csv.CSVWriter(path, schema) as writer:
                yield lambda rows: writer.write_table(
                    pa.Table.from_pylist([_flat(row, schema) for row in rows], schema)
                )
        case ".jsonl":
            with path.open("w", encoding="utf-8", newline="\n") as file:
                yield lambda rows: file.writelines(
                    json.dumps(as_json(row, classes), ensure_ascii=False) + "\n" for row in rows
                )
        case suffix:
            raise ValueError(f"there is no writer for {suffix!r}")


def check_output(output: str, storage: StorageConfig, *, overwrite: bool) -> None:
    """Refuse an output before the job starts. `storage`: options of a bucket.

    Raises ConfigError for an unknown suffix, AlreadyExistsError if the file exists and `overwrite` is False,
    StorageError.
    """
    if not output.endswith(SUFFIXES):
        raise ConfigError(
            f"--output is {output}, and its suffix stands for no format that predictions are written in.",
            advice=f"End it in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.",
        )
    store, name = _place(output, storage)
    if not overwrite and store.exists(name):
        raise _taken(output)


def deliver(file: Path, output: str, storage: StorageConfig, *, overwrite: bool) -> None:
    """Copy a finished file to `output`. Raises AlreadyExistsError as `check_output` does, StorageError."""
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


def _metadata(version: ModelVersion) -> dict[str, str]:
    classes = json.dumps(version.classes, ensure_ascii=False)
    return {"classes": classes, "model": version.model, "version": str(version.number)}


def _flat(row: Row, schema: pa.Schema) -> Row:
    """The row with one column for each class's probability."""
    columns = schema.names[len(_COLUMNS) :]
    values = [None] * len(columns) if row["probabilities"] is None else row["probabilities"]
    return {**row, **dict(zip(columns, values, strict=True))}


def _shortest(value: np.float32) -> float:
    """The number with the fewest digits that identify the float32: 0.9, not 0.8999999761581421."""
    return float(str(value))
