"""Answers of a published model for a folder or prefix of images, as a Parquet table.

Columns: `key`, `class_name`, `class_index`, `probabilities` (list, in the order of the model's classes), and `error`,
which is null for an image that was answered and says why for one that could not be read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transfer.config import Config, DatasetConfig, StorageConfig
from transfer.dataset.check import AcceptedImage, check_image
from transfer.errors import DatasetError
from transfer.memory import FOR_PREDICTION, memory_explained
from transfer.progress import progress
from transfer.registry.versions import ModelVersion, download_version, load_version
from transfer.storage import Store, StoredObject, open_store

BATCH_SIZE = 32
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("class_name", pa.string()),
        ("class_index", pa.int32()),
        ("probabilities", pa.list_(pa.float32())),
        ("error", pa.string()),
    ]
)


Answers = Callable[[list[bytes]], dict[str, Any]]
"""What a published model answers for encoded images."""


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
        answer = load_answers(store, chosen, Path(folder) / "model")
        table = Path(folder) / "predictions.parquet"
        with pq.ParquetWriter(table, _SCHEMA) as writer, progress("predict", total=len(files)) as advance:
            for batch in _batches(files):
                rows = list(_answer_batch(answer, source, batch, config.dataset))
                errors += sum(row["error"] is not None for row in rows)
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                advance(len(rows))
        _deliver(table, output, config.storage)
    return PredictOutcome(version=chosen.number, images=len(files), errors=errors, output=output)


def load_answers(store: Store, version: ModelVersion, folder: Path) -> Answers:
    """Load a published version: a function from n encoded images to its answers.

    They are `probabilities` float32 [n, classes], `class_index` int32 [n] and `class_name` bytes [n]. `folder`: where
    its files are put. Raises CorruptObjectError for a wrong byte, RegistryError when the version is removed meanwhile,
    OutOfMemoryError, as the answers do.
    """
    import tensorflow as tf

    name = f"Version {version.number} of {version.model}"
    files = download_version(store, version, folder)
    with memory_explained(name, advice=FOR_PREDICTION):
        loaded = tf.saved_model.load(str(files))
    signature = loaded.signatures["serving_default"]

    @memory_explained(f"{name}, asked about at most {BATCH_SIZE} images at a time,", advice=FOR_PREDICTION)
    def answer(encoded: list[bytes]) -> dict[str, Any]:
        return {name: value.numpy() for name, value in signature(image_bytes=tf.constant(encoded)).items()}

    # The signature's variables live as long as the loaded object does.
    answer.loaded = loaded  # type: ignore[attr-defined]
    return answer


def _answer_batch(
    answer: Answers, source: Store, files: list[StoredObject], limits: DatasetConfig
) -> Iterator[dict[str, Any]]:
    checked = []
    for file in files:
        if file.size_bytes > limits.max_file_size_bytes:
            yield _failed(file.name, f"too_large_file: {file.size_bytes} bytes")
            continue
        outcome = check_image(
            source.read(file.name),
            key=file.name,
            max_pixels=limits.max_pixels,
            max_file_size_bytes=limits.max_file_size_bytes,
            transcode=limits.transcode,
        )
        if isinstance(outcome, AcceptedImage):
            checked.append((file.name, outcome.data))
        else:
            yield _failed(file.name, f"{outcome.reason}: {outcome.detail}")
    if checked:
        answers = answer([data for _, data in checked])
        for index, (key, _) in enumerate(checked):
            yield {
                "key": key,
                "class_name": answers["class_name"][index].decode(),
                "class_index": int(answers["class_index"][index]),
                "probabilities": answers["probabilities"][index],
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
