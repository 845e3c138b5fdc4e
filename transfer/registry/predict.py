"""Batch prediction with a published model, on all workers: written to a file or a folder, or returned.

The driver lists the images and divides them into parts; workers predict these. It imports no TensorFlow.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.errors import ConfigError
from transfer.registry.prediction_file import Columns, Row, as_json, deliver, is_folder, predictions_file
from transfer.registry.prediction_folder import PredictionFolder, PredictionPlan, check_output
from transfer.registry.prediction_parts import Listing, Part, listed_dataset, listed_images
from transfer.registry.prediction_work import Predicted, PredictionWork
from transfer.registry.versions import load_version
from transfer.runtime.actors import Actors, Task
from transfer.runtime.progress import progress
from transfer.storage import open_store

logger = logging.getLogger(__name__)

MOST_SHOWN = 50
"""Largest number of images that are predicted without an output."""
PARTS_AT_ONCE = 2
"""Of a worker: images of one are read while those of the other go through the network."""
TASK = Task("predict", advice="Repeat the command: parts of a folder that are written are found.")


@dataclass(frozen=True)
class PredictOutcome:
    """Result of a prediction job."""

    version: int
    images: int
    errors: int
    output: str | None
    predictions: list[Row] | None
    """One row for each image, with JSON types only; None if the rows were written to `output`."""
    from_features: int = 0
    """Number of images that were predicted from cached features."""


def predict(
    config: Config,
    *,
    images: Sequence[str] = (),
    dataset: str | None = None,
    split: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    version: int | None = None,
    top_k: int | None = None,
    embeddings: bool = False,
) -> PredictOutcome:
    """Predict images with a published version, on all workers.

    `images`: paths and `s3://` addresses of images, folders, prefixes, lists and tables. `dataset`: instead, a dataset
    version, `NAME` or `NAME@NUMBER`, of which `split` is predicted, or all. Cached features of its images are used if
    the base was not trained.

    The predictions are written to the file `output` (path or `s3://`) in the format of its suffix: `.parquet`, `.csv`
    or `.jsonl`. An existing file is replaced only with `overwrite`. An output that ends with a slash, or has no suffix,
    is a folder of Parquet parts; the same call continues one that is not complete. Without `output` the predictions are
    returned, for at most 50 images (`MOST_SHOWN`).

    `version`: default is the promoted one. `top_k`: number of the most probable classes to name, instead of all
    probabilities. `embeddings`: add the features of the base, in half precision. Bad images are listed with their
    reason and do not stop the job. Only the list of files grows in memory with the number of images.

    Raises DatasetError if there are no files or no such dataset version, RegistryError if the version does not exist or
    has no embeddings, ClusterError if workers keep dying, ConfigError for too many images without an output and for
    options that do not fit, and the errors of `check_output` and `PublishedModel`.
    """
    if bool(images) == (dataset is not None) or (split and not dataset):
        raise ConfigError("Give the images to predict by --images, or by --dataset, which --split belongs to.")
    if output is not None:
        check_output(output, config.storage, overwrite=overwrite)
    store = open_store(config.storage)
    chosen = load_version(store, config.name, version)
    columns = Columns(top_k, embeddings)
    columns.check(chosen, output)
    if dataset is None:
        listing = listed_images(config, chosen, images)
    else:
        listing = listed_dataset(config, store, chosen, dataset, split)
    if output is None and listing.rows > MOST_SHOWN:
        raise ConfigError(
            f"There are {listing.rows:,} images, and at most {MOST_SHOWN} are answered without --output.",
            advice="Give --output FILE.parquet (or .csv, .jsonl).",
        )
    job = _Job(config, chosen, columns, listing)
    shown: list[Row] | None = None
    if output is None:
        shown = [row for table in job.tables() for row in as_json(table, chosen.classes)]
    elif is_folder(output):
        job.write_folder(PredictionFolder(output, config.storage))
    else:
        job.write_file(output, overwrite=overwrite)
    if listing.with_features:
        logger.info("Predicted from cached features: %d of %d images.", job.from_features, listing.rows)
    return PredictOutcome(chosen.number, listing.rows, job.failures, output, shown, job.from_features)


class _Job:
    """The parts of a listing predicted, and what is counted of them."""

    def __init__(self, config: Config, version: ModelVersion, columns: Columns, listing: Listing) -> None:
        self._config, self._version, self._columns, self._listing = config, version, columns, listing
        self.failures = 0
        self.from_features = 0

    def tables(self) -> Iterator[pa.Table]:
        """Yield the predictions in order."""
        for predicted in self._predicted(None):
            yield predicted.table

    def write_file(self, output: str, *, overwrite: bool) -> None:
        """Write one file, in order."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"predictions.{output.rpartition('.')[2]}")
            with predictions_file(file, self._version.classes) as write:
                for table in self.tables():
                    write(table)
            deliver(file, output, self._config.storage, overwrite=overwrite)

    def write_folder(self, folder: PredictionFolder) -> None:
        """Have the workers write a folder of parts, as they come."""
        limits = self._config.dataset
        plan = PredictionPlan(
            model=self._version.model,
            version=self._version.number,
            images=self._listing.rows,
            source=self._listing.source,
            listing=self._listing.digest,
            parts=self._listing.part_count,
            rows_per_part=self._listing.rows_per_part,
            top_k=self._columns.top_k,
            embeddings=self._columns.embeddings,
            max_pixels=limits.max_pixels,
            max_file_size_bytes=limits.max_file_size_bytes,
        )
        folder.begin(plan)
        for _ in self._predicted(folder.uri):
            pass
        folder.end(plan, failures=self.failures)

    def _predicted(self, folder: str | None) -> Iterator[Predicted]:
        actors: Actors[Part, Predicted] = Actors(
            PredictionWork,
            self._config,
            self._version,
            self._columns,
            folder,
            self._listing.dataset,
            workers=self._config.workers,
            task=TASK,
            at_once=PARTS_AT_ONCE,
        )
        with actors, progress("predict", total=self._listing.rows) as advance:
            for part, predicted in actors.map(self._listing.parts(), in_order=folder is None):
                self.failures += predicted.failures
                self.from_features += predicted.from_features
                advance(part.rows)
                yield predicted
