"""Computing the baselines of a report, from features of some images of the training and of the evaluated split.

Cached features are used where there are any. Otherwise images go through the pretrained network once more, so few that
this takes little beside the training (`PASSES_SHARE`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from transfer.catalog.run import Attempt, EpochRow
from transfer.config import Config
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import TransferError
from transfer.evaluation.baselines import Baseline, BaselineName, Baselines
from transfer.evaluation.sampled import SAMPLE_ROWS, Sample, cached_features, computed_features, sample_of
from transfer.features.copy import DescribedPart
from transfer.features.layout import read_description
from transfer.probes.neighbours import nearest_neighbours
from transfer.probes.ridge import fit_ridge
from transfer.runtime.memory import memory_explained
from transfer.storage import open_store
from transfer.training.run import Run, load_run

logger = logging.getLogger(__name__)

PASSES_SHARE = 20
"""Of so many images that training took through the network, baselines take at most one through it."""
LEAST_OF_A_CLASS = 5
"""Images of a split, on average, without which a baseline would say little."""
PROBES: tuple[BaselineName, ...] = ("nearest neighbours", "linear probe")


class _TooCostlyError(Exception):
    """Computing features would take too much beside the training."""


def probe_baselines(
    config: Config, run_id: str, evaluated: Sample, run_right: np.ndarray, history: Sequence[EpochRow]
) -> Baselines:
    """The baselines from features, in a process that may import TensorFlow; `made` lacks the commonest class.

    `run_right`: bool [n], whether the run predicts the images of the sample correctly. Where they cannot be made for a
    reason that a user can do something about, that is told, and the evaluation goes on.
    """
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    dataset = load_dataset(store, run.dataset_name, run.dataset_number)
    work = _Work(run, dataset, most_computed=_most_computed(run, dataset, history))
    try:
        with memory_explained("Computing baselines", advice="Set `baselines: none`, or use workers with more memory."):
            trained, known = work.features(sample_of(store, dataset, "train"))
            answered, asked = work.features(evaluated)
    except _TooCostlyError:
        why = (
            "features of the whole base are not cached, and computing them for enough images would take more than a "
            "twentieth of the training (`baselines: all` does it)"
        )
        return Baselines(made=(), not_made=dict.fromkeys(PROBES, why))
    except TransferError as error:
        logger.warning("There are no baselines from features: %s", error.message)
        return Baselines(made=(), not_made=dict.fromkeys(PROBES, error.message))
    predicted = (
        nearest_neighbours(known, trained.labels, asked),
        fit_ridge(known, trained.labels).predict(asked),
    )
    made = [
        Baseline.compared(name, classes == answered.labels, run_right[: len(answered)])
        for name, classes in zip(PROBES, predicted, strict=True)
    ]
    return Baselines(made=tuple(made), training_images=len(trained))


class _Work:
    """The features of samples by the pretrained base of a run. At most `most_computed` of a sample are computed."""

    def __init__(self, run: Run, dataset: Dataset, *, most_computed: int) -> None:
        self._run, self._dataset, self._most_computed = run, dataset, most_computed

    def features(self, sample: Sample) -> tuple[Sample, np.ndarray]:
        """The part of a sample whose features can be had, and the features, float32 [n, d].

        Raises _TooCostlyError, and what a forward pass and reading shards raise.
        """
        store, dataset = self._run.store, self._dataset
        for described in self._described:
            found = cached_features(store, dataset, sample, described)
            if found is not None:
                return sample, found
        if self._most_computed < min(len(sample), LEAST_OF_A_CLASS * len(dataset.classes)):
            raise _TooCostlyError
        from transfer.features.forward import build_forward
        from transfer.features.frozen import frozen_part_of
        from transfer.training.shared_models import untrained_model

        part = frozen_part_of(untrained_model(self._run, dataset).backbone, 0, map_dtype="float32")
        assert part is not None  # noqa: S101 - with `unfreeze: 0` the whole base is frozen
        few = sample.first(self._most_computed)
        forward = build_forward([part], engine=self._run.config.features.engine)
        (features,) = computed_features(store, dataset, few, forward, part.image_input)
        return few, features

    @cached_property
    def _described(self) -> list[DescribedPart]:
        """The whole base, as the run's last attempt names its cached features: first of the images as they are."""
        last = self._run.uses.newest_number()
        digests = self._run.uses.read_as(Attempt, last).frozen_parts if last else ()
        described = {digest: read_description(self._run.store, digest) for digest in digests}
        parts = [DescribedPart(digest, found) for digest, found in described.items() if found]
        # Features of cuts below the end of the base are maps. Those of its end are, too, if the head flattens them.
        bases = [part for part in parts if self._run.config.trains_head_only or len(part.shape) == 1]
        return sorted(bases, key=lambda part: part.description["view"] is not None)


def _most_computed(run: Run, dataset: Dataset, history: Sequence[EpochRow]) -> int:
    """Most images of each of two splits that baselines may take through the network."""
    if run.config.baselines.made == "all":
        return SAMPLE_ROWS
    inputs = run.inputs.read(1)["phases"] if run.inputs.newest_number() else []
    # Epochs of a head on cached features take next to nothing.
    is_costly = [
        not choice["cached"] or phase.unfreeze != 0 for choice, phase in zip(inputs, run.config.phases, strict=False)
    ]
    epochs = sum(is_costly[row.phase] for row in history if row.phase < len(is_costly))
    return min(SAMPLE_ROWS, epochs * dataset.rows("train") // PASSES_SHARE // 2)
