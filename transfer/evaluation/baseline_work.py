"""Computing the baselines of a report, from features of some images of the training and of the evaluated split.

Cached features are used where there are any. Otherwise images go through the pretrained network once more, so few that
this takes little beside the training (`PASSES_SHARE`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfer.catalog.run import Attempt, EpochRow
from transfer.config import Config
from transfer.config.paths import is_model_file
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

if TYPE_CHECKING:
    from transfer.backbone.backbone import Backbone

logger = logging.getLogger(__name__)

PASSES_SHARE = 20
"""Of so many images that training took through the network, baselines take at most one through it."""
LEAST_OF_A_CLASS = 5
"""Images of a split, on average, without which a baseline would say little."""
PROBES: tuple[BaselineName, ...] = ("nearest neighbours", "linear probe")
RANDOM: tuple[BaselineName, ...] = ("random network",)


class _NotMadeError(Exception):
    """Why a baseline is left out, as a clause."""


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
    most = _most_computed(run, dataset, history)
    known: dict[BaselineName, int] = {}
    made: list[Baseline] = []
    is_right: dict[BaselineName, np.ndarray] = {}
    not_made: dict[BaselineName, str] = {}
    for names, network in (
        (PROBES, _Network(run, dataset, _described_bases(run), lambda: _pretrained(run, dataset), most)),
        (RANDOM, _Network(run, dataset, [], lambda: _random(run, dataset), most)),
    ):
        try:
            with memory_explained(
                "Computing baselines", advice="Set `baselines: none`, or use workers with more memory."
            ):
                trained, features = network.features(sample_of(store, dataset, "train"))
                answered, asked = network.features(evaluated)
                for name in names:
                    is_right[name] = _predicted(name, features, trained.labels, asked) == answered.labels
        except _NotMadeError as reason:
            not_made |= dict.fromkeys(names, str(reason))
            continue
        except TransferError as error:
            logger.warning("Baselines are left out (%s): %s", ", ".join(names), error.message)
            not_made |= dict.fromkeys(names, error.message)
            continue
        for name in names:
            made.append(Baseline.compared(name, is_right[name], run_right[: len(answered)]))
            known[name] = len(trained)
    return Baselines(
        made=tuple(made),
        transfer=_transfer(is_right.get("random network"), is_right.get("linear probe")),
        training_images=known,
        not_made=not_made,
    )


def _predicted(name: BaselineName, features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    if name == "nearest neighbours":
        return nearest_neighbours(features, labels, asked)
    return fit_ridge(features, labels).predict(asked)


def _transfer(random: np.ndarray | None, pretrained: np.ndarray | None) -> Baseline | None:
    """The probe on random weights beside the one on pretrained weights: bool [n], the first images of one sample."""
    if random is None or pretrained is None:
        return None
    both = min(len(random), len(pretrained))
    return Baseline.compared("random network", random[:both], pretrained[:both])


class _Network:
    """The features of samples by the base of a run, pretrained or not.

    `described`: its cached features, those to be preferred first. At most `most_computed` images of a sample go through
    the backbone, which is then loaded.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        described: Sequence[DescribedPart],
        load: Callable[[], Backbone],
        most_computed: int,
    ) -> None:
        self._run, self._dataset, self._described = run, dataset, described
        self._load, self._most_computed = functools.cache(load), most_computed

    def features(self, sample: Sample) -> tuple[Sample, np.ndarray]:
        """The part of a sample whose features can be had, and the features, float32 [n, d].

        Raises _NotMadeError, and what a forward pass and reading shards raise.
        """
        store, dataset = self._run.store, self._dataset
        for described in self._described:
            found = cached_features(store, dataset, sample, described)
            if found is not None:
                return sample, found
        if self._most_computed < min(len(sample), LEAST_OF_A_CLASS * len(dataset.classes)):
            raise _NotMadeError(
                "its features are not cached, and computing them for enough images would take more than a twentieth of "
                "the training (`baselines: all` does it)"
            )
        from transfer.features.forward import build_forward
        from transfer.features.frozen import frozen_part_of

        part = frozen_part_of(self._load(), 0, map_dtype="float32")
        assert part is not None  # noqa: S101 - with `unfreeze: 0` the whole base is frozen
        few = sample.first(self._most_computed)
        forward = build_forward([part], engine=self._run.config.features.engine)
        (features,) = computed_features(store, dataset, few, forward, part.image_input)
        return few, features


def _pretrained(run: Run, dataset: Dataset) -> Backbone:
    from transfer.training.shared_models import untrained_model

    return untrained_model(run, dataset).backbone


def _random(run: Run, dataset: Dataset) -> Backbone:
    """The same network with random weights. Raises _NotMadeError if there is none."""
    from transfer.backbone.backbone import set_precision
    from transfer.backbone.files import HDF5_SUFFIXES, is_preset
    from transfer.backbone.random_start import base_for

    base = run.config.base
    if base.weights == "none":
        raise _NotMadeError("the run itself began with random weights")
    begins = base.model.endswith((".keras", *HDF5_SUFFIXES)) or is_preset(base.model, run.config.storage)
    if is_model_file(base.model) and not begins:
        raise _NotMadeError("its weights come with the network, which cannot begin without them")
    set_precision(run.config.training.mixed_precision)
    without = run.config.model_copy(update={"base": base.model_copy(update={"weights": "none"})})
    return base_for(without, run.store, dataset)


def _described_bases(run: Run) -> list[DescribedPart]:
    """The whole base, as the run's last attempt names its cached features: first of the images as they are."""
    last = run.uses.newest_number()
    digests = run.uses.read_as(Attempt, last).frozen_parts if last else ()
    described = {digest: read_description(run.store, digest) for digest in digests}
    parts = [DescribedPart(digest, found) for digest, found in described.items() if found]
    # Features of cuts below the end of the base are maps. Those of its end are, too, if the head flattens them.
    bases = [part for part in parts if run.config.trains_head_only or len(part.shape) == 1]
    return sorted(bases, key=lambda part: part.description["view"] is not None)


def _most_computed(run: Run, dataset: Dataset, history: Sequence[EpochRow]) -> int:
    """Most images of each of two splits that baselines may take through each of two networks."""
    if run.config.baselines.made == "all":
        return SAMPLE_ROWS
    inputs = run.inputs.read(1)["phases"] if run.inputs.newest_number() else []
    # Epochs of a head on cached features take next to nothing.
    is_costly = [
        not choice["cached"] or phase.unfreeze != 0 for choice, phase in zip(inputs, run.config.phases, strict=False)
    ]
    epochs = sum(is_costly[row.phase] for row in history if row.phase < len(is_costly))
    return min(SAMPLE_ROWS, epochs * dataset.rows("train") // PASSES_SHARE // 4)
