"""Comparison of a challenger with the champion: both published versions predict the same held-out images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.config import Config, Depth
from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.shards import read_shard
from transfer.errors import DatasetError
from transfer.registry.comparison import Comparison, Contender, HeldOut, compare
from transfer.registry.describe import classes_in, never_trained_on
from transfer.registry.published_model import Answers, ask, load_answers
from transfer.registry.versions import load_version
from transfer.reports.thumbnails import Thumbnail, make_thumbnail
from transfer.storage import Store

LATENCY_IMAGES = 30
_WARM_UP_IMAGES = 3


def compare_versions(
    config: Config, store: Store, dataset: Dataset, *, champion: int | None, challenger: int
) -> tuple[Comparison, dict[str, Thumbnail]]:
    """Compare two versions of the model `config.name` on the test split, or on validation if there is no test split.

    Both exported models get the images' encoded bytes. One shard is in memory at a time.

    Args:
        config: `nightly.gate` has the confidence level; `dataset.rename_classes` the names of renamed classes.
        store: Storage with the versions and the dataset version.
        dataset: The dataset version whose held-out images are predicted.
        champion: Number of the version that serves; None evaluates the challenger alone.
        challenger: Number of the version that may take its place.

    Returns:
        The comparison, and thumbnails of images that only one version predicts correctly, by SHA-256.

    Raises:
        DatasetError: There is no image to compare on.
        RegistryError: A version does not exist.
    """
    split = dataset.held_out_split
    shards = dataset.shards_of(split)
    if not shards:
        raise DatasetError(
            f"{dataset.reference} has neither a test nor a validation split, so nothing can be compared on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )
    numbers = [challenger] if champion is None else [challenger, champion]
    versions = [load_version(store, config.name, number) for number in numbers]
    with tempfile.TemporaryDirectory() as folder:
        models = [load_answers(store, version, Path(folder, str(version.number))) for version in versions]
    asked = ask(models, store, shards, first_images=LATENCY_IMAGES)
    ours, *theirs = [
        Contender(
            version=version.number,
            run=version.provenance.run,
            dataset=version.provenance.dataset,
            size_bytes=version.size_bytes,
            latency_ms=latency,
            classes=classes_in(store, dataset, version, config.dataset.rename_classes),
            probabilities=np.concatenate(answers),
        )
        for version, latency, answers in zip(
            versions, latencies_ms(models, asked.first_images), asked.answers, strict=True
        )
    ]
    comparable = np.ones(len(asked.keys), bool)
    for version in versions[1:]:
        comparable &= never_trained_on(store, version, dataset, split, asked.digests)
    held_out = HeldOut(asked.keys, asked.digests, np.array(asked.labels, np.int32), comparable, dataset.classes)
    comparison = compare(ours, theirs[0] if theirs else None, held_out, config.nightly.gate)
    flipped = {flip.sha256 for flip in comparison.flips}
    return comparison, _thumbnails(store, shards, asked.digests, flipped, dataset.depth)


def latencies_ms(models: Sequence[Answers], images: Sequence[bytes]) -> list[float]:
    """Median time of each model for one image, in milliseconds.

    All models predict an image before the next image, in alternating order, so that other load on the machine slows all
    of them equally.
    """
    for model in models:
        for image in images[:_WARM_UP_IMAGES]:
            model([image])
    seconds: list[list[float]] = [[] for _ in models]
    for turn, image in enumerate(images):
        order = range(len(models)) if turn % 2 else reversed(range(len(models)))
        for index in order:
            started = time.perf_counter()
            models[index]([image])
            seconds[index].append(time.perf_counter() - started)
    return [1000 * median(each) for each in seconds]


def _thumbnails(
    store: Store, shards: Sequence[Shard], digests: Sequence[str], wanted: set[str], depth: Depth
) -> dict[str, Thumbnail]:
    """Thumbnails of the `wanted` images; reads only their shards. `digests`: SHA-256 of all images, in order."""
    found: dict[str, Thumbnail | None] = {}
    start = 0
    for shard in shards:
        inside = wanted.intersection(digests[start : start + shard.rows])
        start += shard.rows
        if inside:
            table = read_shard(store, shard, columns=["image", "sha256"])
            chosen = table.filter(pc.is_in(table["sha256"], value_set=pa.array(sorted(inside), pa.string())))
            pictures = [make_thumbnail(image, depth) for image in chosen["image"].to_pylist()]
            found.update(zip(chosen["sha256"].to_pylist(), pictures, strict=True))
    return {digest: picture for digest, picture in found.items() if picture is not None}
