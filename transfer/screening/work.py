"""What the features of one network tell: a unit of work of a screen."""

from __future__ import annotations

import logging

import numpy as np

from transfer.config import Config
from transfer.dataset.manifest import load_dataset
from transfer.errors import TransferError
from transfer.evaluation.metrics import wilson_interval
from transfer.evaluation.sampled import sample_of
from transfer.probes.logme import logme
from transfer.probes.neighbours import nearest_neighbours
from transfer.probes.ridge import fit_ridge
from transfer.runtime.memory import memory_explained
from transfer.runtime.startup import import_tensorflow
from transfer.screening.candidates import Candidate
from transfer.screening.result import FailedBase, ScreenedCut
from transfer.storage import open_store

logger = logging.getLogger(__name__)


class ScreenWork:
    """Screens one network after the other, on a sample of the training split of a dataset version."""

    def __init__(self, config: Config, dataset_number: int) -> None:
        import_tensorflow()
        self._store = open_store(config.storage)
        self._dataset = load_dataset(self._store, config.dataset_name, dataset_number)
        self._sample = sample_of(self._store, self._dataset, "train")

    def __call__(self, candidate: Candidate) -> list[ScreenedCut] | FailedBase:
        """Screen a network at all its cuts. One that cannot be had is told with its reason."""
        try:
            with memory_explained(f"Screening {candidate.title}"):
                return self._screened(candidate)
        except TransferError as error:
            logger.warning("%s is left out: %s", candidate.title, error.message)
            return FailedBase(base=candidate.title, reason=error.message)

    def _screened(self, candidate: Candidate) -> list[ScreenedCut]:
        from transfer.screening.base_features import BaseFeatures

        base = BaseFeatures(candidate.config, self._store, self._dataset, self._sample)
        features, ms, labels = base.features(), base.milliseconds(), self._sample.labels
        cuts = []
        for (tap, part), values in zip(base.parts.items(), features, strict=True):
            right = int(np.sum(fit_ridge(values, labels).left_out == labels))
            cuts.append(
                ScreenedCut(
                    base=candidate.title,
                    tap=tap,
                    size=values.shape[1],
                    right=right,
                    accuracy=right / len(labels),
                    interval=wilson_interval(right, len(labels)),
                    neighbours=float(np.mean(nearest_neighbours(values, labels) == labels)),
                    logme=logme(values, labels),
                    ms=ms[tap],
                    size_bytes=4 * part.network.count_params(),
                    settings=candidate.settings(tap),
                )
            )
        return cuts
