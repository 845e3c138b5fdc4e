"""Comparison of a challenger with the champion: both published versions predict the same held-out images.

The shards of the split are units of work (`comparison_work.py`), on all workers; each is read once.
"""

from __future__ import annotations

from typing import Any

from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import DatasetError, RegistryError
from transfer.evaluation.units import Picture, units_of
from transfer.registry.comparison import Comparison, Contender, Judged, compare
from transfer.registry.comparison_work import ComparisonWork, Rehearsed, UnitJudged
from transfer.registry.describe import NeverTrainedOn, classes_in
from transfer.registry.versions import load_version
from transfer.reports.thumbnails import Thumbnail, make_thumbnail
from transfer.runtime.actors import Actors, Task
from transfer.runtime.progress import progress
from transfer.storage import Store

NOT_TRAINED = "pretrained, as it is"
"""Shown in place of the run and the dataset version of a version that was not trained here."""
TASK = Task("compare models", RegistryError, "Both versions stay. Repeat the command.")


def compare_versions(
    config: Config, store: Store, dataset: Dataset, *, champion: int | None, challenger: int
) -> tuple[Comparison, dict[str, Thumbnail]]:
    """Compare two versions of the model `config.name` on the test split, or on validation if there is no test split.

    Both exported models get the images' encoded bytes. If both were trained as heads on features that are cached for
    the split, their heads answer instead, provided that they agree with the exported models on the first images.

    Args:
        config: `nightly.gate` has the confidence level; `dataset.rename_classes` the names of renamed classes;
            `workers` those on which the models run.
        store: Storage with the versions and the dataset version.
        dataset: The dataset version whose held-out images are predicted.
        champion: Number of the version that serves; None evaluates the challenger alone.
        challenger: Number of the version that may take its place.

    Returns:
        The comparison, and thumbnails of images that only one version predicts correctly, by SHA-256.

    Raises:
        DatasetError: There is no image to compare on.
        RegistryError: A version does not exist, or workers keep dying.
    """
    split = dataset.held_out_split
    units = units_of(dataset.shards_of(split))
    if not units:
        raise DatasetError(
            f"{dataset.reference} has neither a test nor a validation split, so nothing can be compared on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )
    numbers = [challenger] if champion is None else [challenger, champion]
    versions = [load_version(store, config.name, number) for number in numbers]
    known = [classes_in(store, dataset, version, config.dataset.rename_classes) for version in versions]
    held_out = NeverTrainedOn(store, versions[1], dataset, split) if champion is not None else None
    arguments = config, dataset, versions, known, held_out
    judged: Judged | None = None
    pictures: dict[str, Picture] = {}
    with (
        Actors[Any, Any](ComparisonWork, *arguments, workers=config.workers, task=TASK) as actors,
        progress("compare", total=dataset.rows(split)) as advance,
    ):
        rehearsed: Rehearsed
        ((_, rehearsed),) = actors.map([dataset.shards_of(split)])
        part: UnitJudged
        for (unit, _), part in actors.map((unit, rehearsed.by_head) for unit in units):
            if judged is None:
                judged = part.judged
            else:
                judged += part.judged
            pictures |= part.pictures
            pictures = {flip.sha256: pictures[flip.sha256] for flip in judged.flips}
            advance(unit.rows)
    assert judged is not None  # noqa: S101 - there are units
    ours, *theirs = [
        Contender(
            version=version.number,
            run=version.trained.run if version.trained else NOT_TRAINED,
            dataset=version.trained.dataset if version.trained else NOT_TRAINED,
            size_bytes=version.size_bytes,
            latency_ms=latency_ms,
            classes=classes,
        )
        for version, latency_ms, classes in zip(versions, rehearsed.latencies_ms, known, strict=True)
    ]
    gate = config.nightly.gate
    comparison = compare(judged, ours, theirs[0] if theirs else None, classes=dataset.classes, gate=gate)
    shown = {digest: make_thumbnail(picture.read(store), dataset.depth) for digest, picture in pictures.items()}
    return comparison, {digest: picture for digest, picture in shown.items() if picture is not None}
