"""What two published versions answer for the same held-out images, and how long they take for one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.config import Config
from transfer.dataset.batches import BinaryColumn
from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.shards import read_shard
from transfer.errors import DatasetError
from transfer.evaluation.thumbnails import Thumbnail, make_thumbnail
from transfer.nightly.comparison import Contender, HeldOut, compare, never_trained_on
from transfer.nightly.summary import Comparison
from transfer.progress import progress
from transfer.registry.served import BATCH_SIZE, Answers, load_answers
from transfer.registry.versions import ModelVersion, load_version
from transfer.steps import reopened
from transfer.storage import Store

LATENCY_IMAGES = 30
_WARM_UP_IMAGES = 3


def compare_versions(
    config: Config, *, run_id: str, champion: int | None, challenger: int
) -> tuple[Comparison, dict[str, Thumbnail]]:
    """Compare two versions on the test split of the run's dataset version, or on validation where there is no test.

    Both answer as they were published, from the images' encoded bytes; one shard of these is in memory at a time.
    Returns thumbnails of the images that flipped, by their SHA-256. Raises DatasetError when there is nothing to
    compare on, RegistryError when there is no such version.
    """
    run, dataset = reopened(config, run_id)
    split = dataset.held_out_split
    shards = dataset.shards_of(split)
    if not shards:
        raise DatasetError(
            f"{dataset.reference} has neither a test nor a validation split, so nothing can be compared on.",
            advice="Set dataset.test or dataset.validation above 0.",
        )
    numbers = [challenger] if champion is None else [challenger, champion]
    versions = [load_version(run.store, config.name, number) for number in numbers]
    with tempfile.TemporaryDirectory() as folder:
        models = [load_answers(run.store, version, Path(folder, str(version.number))) for version in versions]
    asked = _ask(models, run.store, shards)
    ours, *theirs = [
        Contender(
            version=version.number,
            run=version.provenance["run"],
            dataset=version.provenance["dataset"],
            size_bytes=version.size_bytes,
            latency_ms=latency,
            classes=classes_in(dataset, version, config.dataset.rename_classes),
            probabilities=np.concatenate(answers),
        )
        for version, latency, answers in zip(
            versions, latencies_ms(models, asked.first_images), asked.answers, strict=True
        )
    ]
    comparable = np.ones(len(asked.keys), bool)
    for version in versions[1:]:
        comparable &= never_trained_on(asked.digests, split, version.provenance["config"]["dataset"])
    held_out = HeldOut(asked.keys, asked.digests, np.array(asked.labels, np.int32), comparable, dataset.classes)
    comparison = compare(ours, theirs[0] if theirs else None, held_out, config.nightly.gate)
    return comparison, _thumbnails(run.store, shards, asked.digests, {flip.sha256 for flip in comparison.flips})


def classes_in(dataset: Dataset, version: ModelVersion, renamed: dict[str, str]) -> list[str]:
    """The classes of a model version, in the order of its outputs, by the names that a dataset version has for them.

    A class keeps its index through all versions of a dataset, whatever its name. A model of another dataset has only
    its names, of which `renamed` says which changed.
    """
    if version.provenance["dataset"].rpartition("/")[0] == dataset.name:
        return dataset.classes[: len(version.classes)]
    return [renamed.get(name, name) for name in version.classes]


def latencies_ms(models: Sequence[Answers], images: Sequence[bytes]) -> list[float]:
    """Median time of each model for one image, in milliseconds; all are asked for each image, in changing order.

    So whatever else the machine does in the meantime slows all of them.
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


@dataclass
class _Asked:
    """Images in stored order, and for each model its answers, float32 [batch, classes] each."""

    answers: list[list[np.ndarray]]
    keys: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    first_images: list[bytes] = field(default_factory=list)


def _ask(models: Sequence[Answers], store: Store, shards: Sequence[Shard]) -> _Asked:
    asked = _Asked(answers=[[] for _ in models])
    with progress("compare", total=sum(shard.rows for shard in shards)) as advance:
        for shard in shards:
            table = read_shard(store, shard, columns=["key", "image", "label", "sha256"])
            asked.keys += table["key"].to_pylist()
            asked.digests += table["sha256"].to_pylist()
            asked.labels += table["label"].to_pylist()
            for images in _batches(table):
                for model, answers in zip(models, asked.answers, strict=True):
                    answers.append(np.asarray(model(images)["probabilities"], np.float32))
                asked.first_images += images[: LATENCY_IMAGES - len(asked.first_images)]
                advance(len(images))
    return asked


def _batches(table: Any) -> Iterator[list[bytes]]:
    images = BinaryColumn(table["image"])
    for start in range(0, table.num_rows, BATCH_SIZE):
        yield [images[row] for row in range(start, min(start + BATCH_SIZE, table.num_rows))]


def _thumbnails(
    store: Store, shards: Sequence[Shard], digests: Sequence[str], wanted: set[str]
) -> dict[str, Thumbnail]:
    """Small pictures of some of the images; reads only the shards that they are in. `digests`: of all, in order."""
    found: dict[str, Thumbnail | None] = {}
    start = 0
    for shard in shards:
        inside = wanted.intersection(digests[start : start + shard.rows])
        start += shard.rows
        if inside:
            table = read_shard(store, shard, columns=["image", "sha256"])
            chosen = table.filter(pc.is_in(table["sha256"], value_set=pa.array(sorted(inside), pa.string())))
            pictures = map(make_thumbnail, chosen["image"].to_pylist())
            found.update(zip(chosen["sha256"].to_pylist(), pictures, strict=True))
    return {digest: picture for digest, picture in found.items() if picture is not None}
