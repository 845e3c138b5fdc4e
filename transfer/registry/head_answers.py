"""Predictions of a version from cached features: its head alone runs, on features that its run's base made before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.dataset.manifest import Shard, load_dataset
from transfer.features.forward import CHECKED_ROWS, TOLERANCE
from transfer.features.frozen import frozen_part_of
from transfer.features.store import FeatureStore
from transfer.registry.prediction_file import Outputs
from transfer.registry.published_model import PublishedModel
from transfer.storage import Store
from transfer.training.inference import trace_head
from transfer.training.run import load_run
from transfer.training.shared_models import restore_model

logger = logging.getLogger(__name__)

ROWS = 1024
"""In one call of the head."""


class HeadAnswers:
    """The head that a version's run trained, which no phase trained the base for. Safe to use from several threads."""

    def __init__(self, config: Config, store: Store, version: ModelVersion, model: PublishedModel) -> None:
        self._config, self._store, self._version, self._model = config, store, version, model
        self._building = threading.Lock()
        self._agrees: bool | None = None

    def of_shard(self, shard: Shard, first: list[bytes]) -> list[Outputs] | None:
        """Predictions of all images of a shard, with their features; None if these are damaged, gone or others.

        `first`: encoded, the first images of the shard, about which the published model is asked, too. If it answers
        otherwise, the features of no shard are used. Raises StorageError.
        """
        with self._building:
            features, classify = self._built
        if self._agrees is False or features is None or (rows := features.open_or_discard(shard)) is None:
            return None
        answers = [each for part in rows.parts() for each in _answers(classify, part)]
        with self._building:
            if self._agrees is None:
                self._agrees = self._is_as_published(answers, first)
        return answers if self._agrees else None

    @cached_property
    def _built(self) -> tuple[FeatureStore | None, Any]:
        run = load_run(self._store, self._version.provenance.run, self._config)
        model, _ = restore_model(run, load_dataset(self._store, run.dataset_name, run.dataset_number))
        frozen_part = frozen_part_of(model.backbone, 0, map_dtype=run.config.features.map_dtype)
        if frozen_part is None or len(frozen_part.shape) > 1:
            return None, None
        return FeatureStore(self._store, frozen_part), trace_head(model)

    def _is_as_published(self, answers: list[Outputs], first: list[bytes]) -> bool:
        by_model = self._model.answer(first[:CHECKED_ROWS])["probabilities"]
        by_head = np.stack([probabilities for probabilities, _ in answers[: len(by_model)]])
        difference = float(np.max(np.abs(by_model - by_head)))
        # In this form of the comparison, NaN counts as a difference.
        if difference <= TOLERANCE:
            return True
        logger.warning(
            "The head of run %s answers otherwise from cached features than %s (by %.1e): the images are predicted.",
            self._version.provenance.run,
            self._model.subject,
            difference,
        )
        return False


def _answers(classify: Any, features: np.ndarray) -> Iterator[Outputs]:
    for start in range(0, len(features), ROWS):
        rows = np.asarray(features[start : start + ROWS], np.float32)
        yield from zip(classify(tf.constant(rows)).numpy(), rows, strict=True)
