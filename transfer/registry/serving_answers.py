"""The version that serves, beside a run that is evaluated: its stored predictions, or what it is asked anew."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.dataset.splits import TRAIN
from transfer.errors import CorruptObjectError, DatasetError, ObjectNotFoundError, TrainingError
from transfer.evaluation.against import Reported, SameImages, ServingAnswers
from transfer.evaluation.predictions import Predictions, in_classes
from transfer.evaluation.stored import StoredReport
from transfer.evaluation.units import Unit, UnitImages
from transfer.registry.describe import NeverTrainedOn, classes_in
from transfer.registry.promote import read_serving
from transfer.registry.versions import load_version
from transfer.storage import Store
from transfer.training.run import load_run

if TYPE_CHECKING:
    from transfer.registry.published_model import Answers

logger = logging.getLogger(__name__)


def answers_of_serving(
    config: Config, store: Store, dataset: Dataset, split: str, *, but: str, gate_asks: bool = False
) -> ServingAnswers | None:
    """The version that serves, and how it is asked about a split of a dataset version.

    Returns None if no version serves, if the serving version is from run `but`, or if nothing is known of it. Its
    predictions come from the version's report if that has the split; otherwise the model runs, unless a gate runs it
    later (`gate_asks`). Raises
    CorruptObjectError for a damaged promotion or version, StorageError.
    """
    serving = read_serving(store, config.name)
    if serving.version is None:
        return None
    version = load_version(store, config.name, serving.version)
    trained = version.trained
    asked: ServingVersion | str
    if trained is None:
        asked = "the gate asks both" if gate_asks else _asked_anew(config, store, dataset, split, version)
        return None if isinstance(asked, str) else ServingAnswers(version.number, None, asked, asked.unknown)
    if trained.run == but:
        return None
    if (trained.dataset, trained.metrics.split) == (dataset.reference, split):
        asked = ServingVersion(config, version, version.classes, dataset, None)
    else:
        asked = "the gate asks both" if gate_asks else _asked_anew(config, store, dataset, split, version)
    unknown = () if isinstance(asked, str) else asked.unknown
    reported = Reported(trained.dataset, trained.metrics.split, trained.metrics.accuracy)
    return ServingAnswers(version.number, reported, asked, unknown)


def _asked_anew(
    config: Config, store: Store, dataset: Dataset, split: str, version: ModelVersion
) -> ServingVersion | str:
    if split == TRAIN:
        return "these are no held-out images"
    try:
        known = classes_in(store, dataset, version, config.dataset.rename_classes)
        if not set(known) & set(dataset.classes):
            return f"version {version.number} knows none of the classes of {dataset.reference}"
        return ServingVersion(config, version, known, dataset, NeverTrainedOn(store, version, dataset, split))
    except Exception as error:  # noqa: BLE001 - whatever documents of another release fail with, the run is evaluated
        logger.warning("Version %d, which serves, cannot be asked: %s", version.number, error)
        return f"version {version.number} cannot be asked ({type(error).__name__})"


class ServingVersion:
    """A version to be asked for its predictions; units are asked about one after the other.

    `known`: its classes in the order of its outputs, named as in `dataset`. `never_trained_on`: None if the images are
    those of its own report, which then has the predictions.
    """

    def __init__(
        self,
        config: Config,
        version: ModelVersion,
        known: Sequence[str],
        dataset: Dataset,
        never_trained_on: NeverTrainedOn | None,
    ) -> None:
        self.version = version.number
        self.needs_images = never_trained_on is not None
        self.unknown = tuple(name for name in dataset.classes if name not in known)
        self._config, self._version, self._known, self._classes = config, version, list(known), dataset.classes
        self._never_trained_on = never_trained_on
        self._report: StoredReport | None = None
        self._model: Answers | None = None

    def answers(self, store: Store, unit: Unit, images: UnitImages) -> SameImages:
        """Its predictions for the images of a unit. Raises what loading the version raises, and its model."""
        if not self.needs_images:
            try:
                return self._of_report(store, unit, images)
            except (CorruptObjectError, ObjectNotFoundError, DatasetError, TrainingError) as error:
                logger.warning("Version %d, which serves, is asked anew: %s", self.version, error)
                self.needs_images = True
        held_out = self._never_trained_on
        comparable = np.ones(len(images), bool) if held_out is None else held_out.of(images.digests)
        probabilities = np.full((len(images), len(self._known)), 1 / len(self._known), np.float32)
        if comparable.any():
            probabilities = self._of_model(store, images)
        names, probabilities = in_classes(probabilities, self._known, self._classes)
        return SameImages(Predictions(images.keys, images.labels, probabilities, names), comparable)

    def _of_report(self, store: Store, unit: Unit, images: UnitImages) -> SameImages:
        if self._report is None:
            provenance = self._version.of_run
            self._report = StoredReport(load_run(store, provenance.run, self._config), provenance.report)
        found = self._report.predictions(unit.start, unit.start + unit.rows)
        if found.keys != images.keys:
            raise DatasetError(
                "Its report has predictions for other images than its dataset version.", advice="Evaluate it again."
            )
        return SameImages(found, np.ones(len(images), bool))

    def _of_model(self, store: Store, images: UnitImages) -> np.ndarray:
        # Imported late: it loads TensorFlow, which a driver does without.
        from transfer.registry.published_model import load_answers, probabilities_of

        if self._model is None:
            with tempfile.TemporaryDirectory() as folder:
                self._model = load_answers(store, self._version, Path(folder))
        return probabilities_of(self._model, images)
