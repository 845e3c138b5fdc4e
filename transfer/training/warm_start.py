"""A head that begins with the weights of a published version's head, class by class.

A run begins at its own newest checkpoint. Without one it begins with the pretrained base, and with the head of the
version that `training.warm_start` names, or else with the head that its seed decides. If the base of that version was
trained, too, its head was trained for that base, and the first steps adapt it to the pretrained one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from transfer.backbone.identity import base_digests
from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.config import Config, Decides, Varies, deciding
from transfer.dataset.classes import places_among
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import ConfigError, ObjectNotFoundError, TrainingError
from transfer.storage import Log, Store
from transfer.training.checkpoints import Checkpoints, assign
from transfer.training.rows import held_out_but_seen
from transfer.training.run import Run, load_run, pinned_base, started_identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedHead:
    """The head of a published version. `weights`: kernel and bias of each dense layer, the logits' last."""

    run: Run
    """The run that trained the head."""
    classes: list[str]
    weights: list[np.ndarray]


def warm_start(head: keras.Model, run: Run, dataset: Dataset) -> None:
    """Put the weights of the version that `training.warm_start` names into a new head. Without the key, do nothing.

    Classes that the version has get its weights; other classes keep those of the seed. Hidden layers get its weights.
    Must be called within the strategy's scope.

    Raises ConfigError if there is no such version, if its head does not fit, or if it was trained on images that the
    run holds out, which is always so for the run of a fold.
    """
    reference = run.config.training.warm_start
    if reference is None:
        return
    if run.fold is not None:
        raise ConfigError(
            f"training.warm_start is `{reference}`, which was trained on images that cross-validation (sweep.folds) "
            "holds out. The figures on them would be too good.",
            advice="Set sweep.folds to 0, or leave warm_start out.",
        )
    published = published_head(run.store, run.config, reference)
    before = load_dataset(run.store, published.run.dataset_name, published.run.dataset_number)
    # For each class of the published head its index in the dataset; None if the dataset does not have it.
    places = places_among(
        published.classes,
        dataset.classes,
        same_indices=dataset.has_indices_of(before),
        renames=run.config.dataset.rename_classes,
    )
    known = sum(place is not None for place in places)
    if not known:
        raise ConfigError(
            f"training.warm_start is `{reference}`, which has none of the classes of {dataset.reference}.",
            advice="Name a version that has some of them, or leave warm_start out.",
        )
    _check_same_base(reference, published.run, run)
    seen = held_out_but_seen(run.store, dataset, before=before)
    if seen is not None:
        raise ConfigError(
            f"training.warm_start is `{reference}`, which was trained on images that {dataset.reference} holds out: "
            f"{seen}. The figures on them would be too good.",
            advice=f"Split the images as for {before.reference} (dataset.validation, dataset.test, given splits, "
            "groups), or leave warm_start out to begin with a new head.",
        )
    first = [np.array(variable) for variable in head.trainable_variables]
    there, here = published.weights[0].shape[0], first[0].shape[0]
    if there != here:
        # The base is the same, so this happens only with `pooling: flatten` and another image size.
        raise _refused(reference, f"its head does not fit: it takes {there} features, and the head here {here}")
    assign(head.trainable_variables, taken_over(first, published.weights, places, output=run.config.head.output))
    logger.info("The head begins with weights of %s for %d of %d classes.", reference, known, len(dataset.classes))


def published_head(store: Store, config: Config, reference: str) -> PublishedHead:
    """The head of a version, `name/3`, with which a run of this configuration can begin.

    Raises ConfigError if there is no such version, if it has no run, if its run was removed, or if its head has another
    structure.
    """
    name, _, number = reference.rpartition("/")
    try:
        version = Log(store, layout.versions_log(name)).read_as(ModelVersion, int(number))
    except (ObjectNotFoundError, ValueError) as error:  # No log has a number 0.
        raise _refused(reference, f"there is no such version in {store.uri}") from error
    if version.trained is None:
        raise _refused(reference, "it is a pretrained classifier, published as it is, and has no head of a run")
    try:
        run = load_run(store, version.trained.run, config)
        weights = Checkpoints(run).complete().weights
    except TrainingError as error:
        raise _refused(reference, f"its weights are gone: {error.message.rstrip('.')}") from error
    _check_agreement(reference, run, config)
    # A checkpoint ends with the head's variables, which every phase trains: kernel and bias of each dense layer.
    own = weights[-2 * (len(run.config.head.hidden) + 1) :]
    return PublishedHead(run, list(version.classes), own)


def taken_over(
    first: Sequence[np.ndarray], published: Sequence[np.ndarray], places: Sequence[int | None], *, output: str
) -> list[np.ndarray]:
    """The weights of a new head (`first`), replaced by those of a published head where classes are the same.

    Both are kernel and bias of each dense layer. `places`: for each class of the published head its index in the new
    one; None if the new head does not have it. The one unit of a `sigmoid` is the logit of class 1 against class 0. It
    is replaced if the new head has both classes, with the opposite sign if they changed places.
    """
    kernel, bias = (array.copy() for array in first[-2:])
    *hidden, known_kernel, known_bias = published
    if output == "softmax":
        for column, place in enumerate(places):
            if place is not None:
                kernel[:, place], bias[place] = known_kernel[:, column], known_bias[column]
    elif {*places} == {0, 1}:
        sign = 1 if list(places) == [0, 1] else -1
        kernel, bias = sign * known_kernel, sign * known_bias
    return [*hidden, kernel, bias]


def _check_agreement(reference: str, theirs: Run, ours: Config) -> None:
    # A key that is not set may be missing in either.
    there_by_key, here_by_key = _must_agree(theirs.config), _must_agree(ours)
    differing = [
        f"{key} was {there_by_key.get(key)!r} and is {here_by_key.get(key)!r}"
        for key in dict.fromkeys([*there_by_key, *here_by_key])
        if there_by_key.get(key) != here_by_key.get(key)
    ]
    named = started_identity(theirs)["base"]
    differing += [
        f"the file of base.{key} had the SHA-256 {there[:12]}… and has {here[:12]}…"
        for key, here in base_digests(ours.base, storage=ours.storage).items()
        # Runs of earlier releases have no digests.
        if isinstance(named[key], dict) and (there := named[key]["sha256"]) != here
    ]
    if differing:
        raise _refused(reference, f"its head does not fit: {'; '.join(differing)}")


def _check_same_base(reference: str, theirs: Run, ours: Run) -> None:
    """Raise ConfigError if the bases are different networks although their configurations are the same."""
    # Digests can be compared only with the same image input and precision, which change the digest, too.
    seen = [(run.config.image_input, run.config.training.mixed_precision) for run in (theirs, ours)]
    there, here = pinned_base(theirs), pinned_base(ours)
    if seen[0] == seen[1] and there is not None and here is not None and there != here:
        raise _refused(
            reference,
            f"its head does not fit: the digest of `{ours.config.base.model}` was {there[:12]}… and is {here[:12]}…",
        )


def _must_agree(config: Config) -> dict[str, Any]:
    """The values, by dotted key, that decide the features that a head takes and the shapes of its hidden layers."""
    base = deciding(config.base, Decides.FEATURES, but=Varies.IN_WARM_START)
    head = deciding(config.head, Decides.FEATURES, Decides.LEARNING, but=Varies.IN_TRAINING)
    return {f"base.{name}": value for name, value in base.items()} | {
        f"head.{name}": value for name, value in head.items()
    }


def _refused(reference: str, why: str) -> ConfigError:
    return ConfigError(
        f"training.warm_start is `{reference}`, and {why}.",
        advice="Name another version (see `transfer registry list`), or leave warm_start out to begin with a new head.",
    )
