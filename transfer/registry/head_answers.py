"""Predictions of a version from cached features: its head alone runs, on features that its run's base made before.

The prediction job and the comparison of versions both hold a head to the version that it stands for.
"""

from __future__ import annotations

import logging
import threading
from functools import cached_property

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.dataset.manifest import Shard, load_dataset
from transfer.errors import CorruptObjectError, ObjectNotFoundError, TransferError
from transfer.evaluation.run_answers import RunAnswers
from transfer.evaluation.units import first_images
from transfer.features.frozen import FrozenPart
from transfer.features.store import CachedRows, FeatureStore
from transfer.registry.export_proof import TOLERANCE
from transfer.registry.prediction_file import Outputs
from transfer.registry.published_model import PublishedModel
from transfer.storage import Store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run
from transfer.training.samples import CachedSplit

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 30
"""That the published model is asked about, too: one batch of it."""


def head_of(config: Config, store: Store, version: ModelVersion) -> RunAnswers | None:
    """The head of a version's run, if no phase trained the base, and its weights and its base are the exported ones."""
    provenance = version.trained
    if provenance is None:
        return None
    try:
        run = load_run(store, provenance.run, config)
        last = Checkpoints(run).last_entry()
        if not run.config.trains_head_only or last is None or last[1].weights != provenance.weights.sha256:
            return None
        answers = RunAnswers(run, load_dataset(store, run.dataset_name, run.dataset_number), exactly=False)
    except TransferError as error:
        # For example, the run was removed, or its base is another one by now.
        logger.info("Version %d is asked as exported: %s", version.number, error.message)
        return None
    is_same = answers.model.digest == provenance.base.sha256 and answers.model.classes == [*version.classes]
    return answers if is_same else None


def is_as_exported(version: ModelVersion, by_head: np.ndarray, exported: np.ndarray) -> bool:
    """Whether probabilities [n, classes] of the head are those of the exported model, up to rounding."""
    difference = float(np.max(np.abs(by_head - exported)))
    # In this form of the comparison, NaN counts as a difference.
    agrees = difference <= TOLERANCE
    logger.info(
        "Version %d answers %s: for %d images the two differ by at most %.2g.",
        version.number,
        "by its head from cached features" if agrees else "as exported, and not by its head",
        len(exported),
        difference,
    )
    return agrees


class HeadAnswers:
    """The head of a version, for a prediction job. Safe to use from several threads."""

    def __init__(
        self, config: Config, store: Store, version: ModelVersion, model: PublishedModel, *, embeddings: bool
    ) -> None:
        """`embeddings`: predictions have the features beside the probabilities."""
        self._config, self._store, self._version, self._model = config, store, version, model
        self._embeddings = embeddings
        self._building = threading.Lock()
        self._agrees: bool | None = None

    def of_shard(self, shard: Shard, rows: range) -> list[Outputs] | None:
        """Predictions of some images of a shard; None if its features are damaged, gone or others.

        The published model is asked about the first images of the first shard, too. If it answers otherwise, the
        features of no shard are used. Raises StorageError.
        """
        with self._building:
            head = self._head
        if head is None or head.frozen_part is None or self._agrees is False:
            return None
        if (opened := self._opened(head.frozen_part, shard)) is None:
            return None
        features = CachedSplit([shard], [opened])
        with self._building:
            if self._agrees is None:
                first = first_images(self._store, [shard], CHECKED_IMAGES)
                by_head = np.concatenate([answers for answers, _ in head.by_head(features, range(len(first)))])
                self._agrees = is_as_exported(self._version, by_head, self._model.answer(first)["probabilities"])
        if not self._agrees:
            return None
        return [
            outputs
            for probabilities, values in head.by_head(features, rows)
            for outputs in zip(probabilities, values if self._embeddings else [None] * len(values), strict=True)
        ]

    @cached_property
    def _head(self) -> RunAnswers | None:
        return head_of(self._config, self._store, self._version)

    def _opened(self, frozen_part: FrozenPart, shard: Shard) -> CachedRows | None:
        try:
            return FeatureStore(self._store, frozen_part).open(shard)
        except ObjectNotFoundError:
            return None  # Features may be removed at any time.
        except CorruptObjectError as error:
            # A command that only reads removes nothing.
            logger.warning("%s Its images are predicted.", error.message)
            return None
