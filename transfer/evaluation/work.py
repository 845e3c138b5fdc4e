"""Evaluation as units of work: what a process with the trained model does for some shards, and tells of them."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transfer.catalog import layout
from transfer.config import Config
from transfer.dataset.index import ImageIndex
from transfer.dataset.manifest import load_dataset
from transfer.errors import AlreadyExistsError, CorruptObjectError
from transfer.evaluation.against import Asked, Beside
from transfer.evaluation.metrics import Tally
from transfer.evaluation.mistakes import Mistake, worst_mistakes
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.units import INDEXED, Picture, Unit, UnitImages
from transfer.runtime.memory import FOR_EVALUATION, memory_explained
from transfer.runtime.startup import import_tensorflow
from transfer.storage import open_store, sha256_hex
from transfer.training.run import load_run

if TYPE_CHECKING:
    from transfer.evaluation.run_answers import RunAnswers

logger = logging.getLogger(__name__)

GALLERY_SIZE = 24


@dataclass(frozen=True)
class Part:
    """What is told of the images of a unit.

    `sha256`: of the file with their predictions. `right`: bool [n], which are predicted correctly. `pictures`: of the
    mistakes, by SHA-256. `beside`: the same images by the version that serves, or why there are no predictions of it,
    as a clause; None if it is not asked.
    """

    sha256: str
    tally: Tally
    right: np.ndarray
    mistakes: list[Mistake]
    pictures: dict[str, Picture]
    beside: Beside | str | None
    untrained_classes: tuple[str, ...]
    rounds_coarsely: bool


class EvaluationWork:
    """Evaluates units with the model of a finished run, and stores their predictions in report `number`.

    `exactly`: with the exported graph. `asked`: the version that serves; None if it is not asked. `stored`: files of
    predictions that an earlier attempt stored, which are not computed again.
    """

    def __init__(
        self,
        config: Config,
        run_id: str,
        number: int,
        exactly: bool,
        asked: Asked | None,
        stored: frozenset[str] = frozenset(),
    ) -> None:
        import_tensorflow()

        from transfer.evaluation.run_answers import RunAnswers

        self._store = open_store(config.storage)
        self._run = load_run(self._store, run_id, config)
        self._dataset = load_dataset(self._store, self._run.dataset_name, self._run.dataset_number)
        self._index = ImageIndex(self._store, self._dataset, INDEXED)
        self._answers: RunAnswers = RunAnswers(self._run, self._dataset, exactly=exactly)
        self._number, self._asked, self._known = number, asked, stored
        self._computing = threading.Lock()

    def __call__(self, unit: Unit) -> Part:
        """Evaluate a unit."""
        batch_size = self._run.config.training.batch_size
        is_stored = predictions_file(unit) in self._known
        with memory_explained(f"Evaluating on {batch_size} images at a time", advice=FOR_EVALUATION):
            with self._computing:
                by_features = None if is_stored else self._answers.by_features(unit.shards)
            asks_images = self._asked is not None and self._asked.needs_images
            # Reads while another unit is computed.
            whole = asks_images or (by_features is None and not is_stored)
            images = UnitImages(self._store, self._index, unit, whole=whole)
            with self._computing:
                if is_stored:
                    return self._part(unit, images, self._store.read(self._name(unit)))
                probabilities = self._answers.by_network(images) if by_features is None else by_features
                coarsely = self._answers.rounds_coarsely
                computed = Predictions(images.keys, images.labels, probabilities, self._dataset.classes, coarsely)
                return self._part(unit, images, self._put(unit, computed.to_parquet()))

    def _put(self, unit: Unit, data: bytes) -> bytes:
        """Store predictions, and return those that are stored."""
        try:
            self._store.put(self._name(unit), data)
        except AlreadyExistsError:
            # By a worker that died since. It may have rounded otherwise.
            return self._store.read(self._name(unit))
        return data

    def _part(self, unit: Unit, images: UnitImages, data: bytes) -> Part:
        """What is told of a unit, by the predictions that are stored: the bytes of a Parquet file."""
        name = self._name(unit)
        predictions = Predictions.from_parquet(data, self._dataset.classes, name=name)
        if predictions.keys != images.keys:
            raise CorruptObjectError(
                f"{name} in {self._store.uri} has predictions for other images than the dataset version.",
                advice="Remove it, and evaluate the run again.",
            )
        mistakes = worst_mistakes(predictions, GALLERY_SIZE, digests=images.digests)
        return Part(
            sha256=sha256_hex(data),
            tally=Tally.of(predictions),
            right=predictions.predicted == predictions.labels,
            mistakes=mistakes,
            pictures=images.pictures(mistake.sha256 for mistake in mistakes),
            beside=self._beside(unit, images, predictions),
            untrained_classes=tuple(self._answers.model.untrained_classes),
            # Of the process that computed them, which had a GPU perhaps.
            rounds_coarsely=predictions.rounds_coarsely,
        )

    def _name(self, unit: Unit) -> str:
        return layout.report_file(self._run.folder, self._number, predictions_file(unit))

    def _beside(self, unit: Unit, images: UnitImages, predictions: Predictions) -> Beside | str | None:
        if self._asked is None:
            return None
        try:
            return Beside.of(predictions, self._asked.answers(self._store, unit, images))
        except Exception as error:  # noqa: BLE001 - whatever a model of another release fails with, the run is evaluated
            version = self._asked.version
            logger.warning("Version %d, which serves, cannot be asked: %s", version, error)
            return f"version {version} cannot be asked ({type(error).__name__})"


def predictions_file(unit: Unit) -> str:
    """Name of the file of a unit's predictions, among the files of a report."""
    return layout.PREDICTIONS if unit.count == 1 else layout.part_of_predictions(unit.number, unit.count)
