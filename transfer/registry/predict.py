"""Batch prediction with a published model: written to a file or, for a few images, returned."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from transfer.config import Config, DatasetConfig, ImageInput
from transfer.dataset.batches import checked_and_decoded
from transfer.dataset.manifest import Reject
from transfer.dataset.refusals import RejectedImage
from transfer.errors import ConfigError
from transfer.registry.images import Image, find_images
from transfer.registry.prediction_file import Row, answered, as_json, check_output, deliver, failed, predictions_file
from transfer.registry.published_model import BATCH_SIZE, Engine, PublishedModel
from transfer.registry.versions import download_version, load_version
from transfer.runtime.progress import progress
from transfer.storage import open_store

MOST_SHOWN = 50
"""Largest number of images that are predicted without an output."""


@dataclass(frozen=True)
class PredictOutcome:
    """Result of a prediction job."""

    version: int
    images: int
    errors: int
    output: str | None
    predictions: list[Row] | None
    """One row for each image, with JSON types only; None if the rows were written to `output`."""


def predict(
    config: Config,
    *,
    images: Sequence[str],
    output: str | None = None,
    overwrite: bool = False,
    version: int | None = None,
) -> PredictOutcome:
    """Predict `images` (paths and `s3://` addresses of images, folders and prefixes) with a published version.

    The predictions are written to the file `output` (path or `s3://`) in the format of its suffix: `.parquet`, `.csv`
    or `.jsonl`. An existing file is replaced only with `overwrite`. Without `output` the predictions are returned, for
    at most 50 images (`MOST_SHOWN`). `version`: default is the promoted one. Bad images are listed with their reason
    and do not stop the job. Only the list of files grows in memory with the number of images.

    Raises DatasetError if there are no files, RegistryError if the version does not exist, ConfigError for too many
    images without an output, and the errors of `check_output` and `PublishedModel`.
    """
    if output is not None:
        check_output(output, config.storage, overwrite=overwrite)
    store = open_store(config.storage)
    chosen = load_version(store, config.name, version)
    found = find_images(images, config.storage)
    if output is None and len(found) > MOST_SHOWN:
        raise ConfigError(
            f"There are {len(found):,} images, and at most {MOST_SHOWN} are answered without --output.",
            advice="Give --output FILE.parquet (or .csv, .jsonl).",
        )
    with tempfile.TemporaryDirectory() as folder:
        model = PublishedModel(chosen, download_version(store, chosen, Path(folder) / "model"))
        reader = _Reader(config.dataset, image_input=model.image_input, background=model.background)
        batches = _answered(model, reader, found, engine=config.features.engine)
        if output is None:
            shown = [as_json(row, model.classes) for rows in batches for row in rows]
            return PredictOutcome(chosen.number, len(found), _errors(shown), None, shown)
        file, errors = Path(folder, f"predictions.{output.rpartition('.')[2]}"), 0
        with predictions_file(file, chosen) as write, progress("predict", total=len(found)) as advance:
            for rows in batches:
                write(rows)
                errors += _errors(rows)
                advance(len(rows))
        deliver(file, output, config.storage, overwrite=overwrite)
    return PredictOutcome(chosen.number, len(found), errors, output, None)


@dataclass
class _Read:
    """A batch of files that were read."""

    rows: list[Row | None] = field(default_factory=list)
    """One for each file, in order: the row with its error, or None if the file can be predicted."""
    keys: list[str] = field(default_factory=list)
    """Keys of the files that can be predicted; `encoded` and `pixels` have the same files in the same order."""
    encoded: list[bytes] = field(default_factory=list)
    pixels: list[np.ndarray] = field(default_factory=list)


class _Reader:
    """Reads and checks files as an ingest does; transparent pixels get the background of the model's training."""

    def __init__(self, limits: DatasetConfig, *, image_input: ImageInput, background: str | None) -> None:
        self._limits = limits
        self._image_input = image_input
        self._background = background

    def read(self, images: Iterable[Image]) -> _Read:
        found = _Read()
        for image in images:
            outcome = self._checked(image)
            if isinstance(outcome, Reject | RejectedImage):
                found.rows.append(failed(image.key, f"{outcome.reason}: {outcome.detail}"))
                continue
            encoded, pixels = outcome
            found.rows.append(None)
            found.keys.append(image.key)
            found.encoded.append(encoded)
            found.pixels.append(pixels)
        return found

    def _checked(self, image: Image) -> tuple[bytes, np.ndarray] | Reject | RejectedImage:
        data = image.read(max_size_bytes=self._limits.max_file_size_bytes)
        if isinstance(data, Reject):
            return data
        return checked_and_decoded(
            data,
            key=image.key,
            image_input=self._image_input,
            limits=self._limits,
            transcode=self._limits.transcode,
            background=self._background,
        )


def _answered(
    model: PublishedModel, reader: _Reader, images: Iterable[Image], *, engine: Engine
) -> Iterator[list[Row]]:
    """Yield the rows of all images, in order and in batches. Reading the next files overlaps with prediction."""
    waiting: deque[_Read] = deque()

    def batches() -> Iterator[tuple[list[bytes], np.ndarray]]:
        for batch in _batches(images):
            read = reader.read(batch)
            waiting.append(read)
            if read.keys:
                pixels = np.stack(read.pixels)
                read.pixels = []
                yield read.encoded, pixels

    def next_rows(answers: np.ndarray | None = None) -> list[Row]:
        read = waiting.popleft()
        rest = iter(zip(read.keys, () if answers is None else answers, strict=True))
        return [row or answered(*next(rest), model.classes) for row in read.rows]

    for probabilities in model.answers(batches(), engine=engine):
        while not waiting[0].keys:
            yield next_rows()
        yield next_rows(probabilities)
    while waiting:
        yield next_rows()


def _errors(rows: Iterable[Row]) -> int:
    return sum(row["error"] is not None for row in rows)


def _batches(images: Iterable[Image]) -> Iterator[list[Image]]:
    remaining = iter(images)
    while batch := list(islice(remaining, BATCH_SIZE)):
        yield batch
