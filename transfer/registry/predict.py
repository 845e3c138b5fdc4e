"""Batch prediction with a published model: written to a file or, for a few images, returned."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from transfer.config import Config
from transfer.dataset.manifest import Reject
from transfer.errors import ConfigError
from transfer.registry.answered_images import answered_images
from transfer.registry.images import find_images
from transfer.registry.prediction_file import Row, answered, as_json, check_output, deliver, failed, predictions_file
from transfer.registry.published_model import PublishedModel
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
        limits = config.dataset.model_copy(update={"background": model.background})
        batches = answered_images(
            ((image.key, image.read(max_size_bytes=limits.max_file_size_bytes)) for image in found),
            image_input=model.image_input,
            limits=limits,
            answer=partial(model.answers, engine=config.features.engine),
        )
        answers = ([_row(*image, model.classes) for image in batch] for batch in batches)
        if output is None:
            shown = [as_json(row, model.classes) for rows in answers for row in rows]
            return PredictOutcome(chosen.number, len(found), _errors(shown), None, shown)
        file, errors = Path(folder, f"predictions.{output.rpartition('.')[2]}"), 0
        with predictions_file(file, chosen) as write, progress("predict", total=len(found)) as advance:
            for rows in answers:
                write(rows)
                errors += _errors(rows)
                advance(len(rows))
        deliver(file, output, config.storage, overwrite=overwrite)
    return PredictOutcome(chosen.number, len(found), errors, output, None)


def _row(key: str, answer: np.ndarray | Reject, classes: Sequence[str]) -> Row:
    if isinstance(answer, Reject):
        return failed(key, f"{answer.reason}: {answer.detail}")
    return answered(key, answer, classes)


def _errors(rows: Iterable[Row]) -> int:
    return sum(row["error"] is not None for row in rows)
