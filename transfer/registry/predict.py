"""Answers of a published model for a folder or prefix of images, as a Parquet table.

Columns: `key`, `class_name`, `class_index`, `probabilities` (list, in the order of the model's classes), and `error`,
which is null for an image that was answered and says why for one that could not be read.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.stored import decoded
from transfer.errors import DatasetError
from transfer.progress import progress
from transfer.registry.served import BATCH_SIZE, Engine, PublishedModel
from transfer.registry.versions import download_version, load_version
from transfer.storage import Store, StoredObject, open_store

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class_name", pa.string()),
        ("class_index", pa.int32()),
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class PredictOutcome:
    """What a prediction job did."""

    version: int
    images: int
    errors: int
    output: str


def predict(config: Config, *, images: str, output: str, version: int | None = None) -> PredictOutcome:
    """Answer every file below `images` (a folder or `s3://` prefix) into a Parquet file at `output` (path or `s3://`).

    Uses the promoted version unless `version` names one. Bad images are listed with their reason and do not stop the
    job. Memory does not grow with the number of images. Raises DatasetError when there is no file, RegistryError when
    there is no such version, AlreadyExistsError when `output` holds something else.
    """
    store = open_store(config.storage)
    chosen = load_version(store, config.name, version)
    source = open_store(config.storage.model_copy(update={"uri": images}))
    files = list(source.list())
    if not files:
        raise DatasetError(f"There are no files in {images}.", advice="Give a folder or an s3:// prefix of images.")
    errors = 0
    with tempfile.TemporaryDirectory() as folder:
        model = PublishedModel(chosen, download_version(store, chosen, Path(folder) / "model"))
        reader = _Reader(source, config.dataset, image_size=model.image_size)
        table = Path(folder) / "predictions.parquet"
        with pq.ParquetWriter(table, _SCHEMA) as writer, progress("predict", total=len(files)) as advance:
            for rows in _answered(model, reader, files, engine=config.activations.engine):
                errors += sum(row["error"] is not None for row in rows)
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                advance(len(rows))
        _deliver(table, output, config.storage)
    return PredictOutcome(version=chosen.number, images=len(files), errors=errors, output=output)


@dataclass
class _Read:
    """Some files as they were read: a row for each that could not be, and the key and pixels of each that could."""

    failed: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    encoded: list[bytes] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)


class _Reader:
    """Reads and checks files as an ingest does."""

    def __init__(self, source: Store, limits: DatasetConfig, *, image_size: int) -> None:
        self._source = source
        self._limits = limits
        self._image_size = image_size

    def read(self, files: Iterable[StoredObject]) -> _Read:
        limits, found = self._limits, _Read()
        for file in files:
            if file.size_bytes > limits.max_file_size_bytes:
                found.failed.append(_failed(file.name, f"too_large_file: {file.size_bytes} bytes"))
                continue
            outcome = check_image(
                self._source.read(file.name),
                key=file.name,
                max_pixels=limits.max_pixels,
                max_file_size_bytes=limits.max_file_size_bytes,
                transcode=limits.transcode,
            )
            if isinstance(outcome, AcceptedImage):
                found.keys.append(file.name)
                found.encoded.append(outcome.data)
                found.pixels.append(decoded(outcome.data, image_size=self._image_size))
            else:
                found.failed.append(_failed(file.name, f"{outcome.reason}: {outcome.detail}"))
        return found


def _answered(
    model: PublishedModel, reader: _Reader, files: Iterable[StoredObject], *, engine: Engine
) -> Iterator[list[dict[str, Any]]]:
    """The rows of all files, some at a time. While the model answers, the next files are read."""
    waiting: deque[_Read] = deque()

    def batches() -> Iterator[tuple[list[bytes], np.ndarray]]:
        for batch in _batches(files):
            read = reader.read(batch)
            waiting.append(read)
            if read.keys:
                pixels = np.stack(read.pixels)
                read.pixels = []
                yield read.encoded, pixels

    for probabilities in model.answers(batches(), engine=engine):
        while not waiting[0].keys:
            yield waiting.popleft().failed
        read = waiting.popleft()
        rows = zip(read.keys, probabilities, strict=True)
        yield [*read.failed, *(_row(key, answer, model.classes) for key, answer in rows)]
    for read in waiting:
        yield read.failed


def _row(key: str, probabilities: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    index = int(np.argmax(probabilities))
    return {
        "key": key,
        "class_name": classes[index],
        "class_index": index,
        "probabilities": probabilities,
        "error": None,
    }


def _failed(key: str, error: str) -> dict[str, Any]:
    return {"key": key, "class_name": None, "class_index": None, "probabilities": None, "error": error}


def _batches(files: Iterable[StoredObject]) -> Iterator[list[StoredObject]]:
    remaining = iter(files)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch


def _deliver(table: Path, output: str, storage: StorageConfig) -> None:
    folder, _, name = output.rpartition("/")
    target = storage.model_copy(update={"uri": folder or "."}) if "/" in output else StorageConfig(uri=".")
    open_store(target).put(name, table)
