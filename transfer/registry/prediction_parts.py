"""What a prediction job predicts, divided into parts, which are its units of work. Needs no TensorFlow.

The division depends on the images alone, so a job that was killed may be continued with any number of workers.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.catalog.run import Attempt
from transfer.config import Config
from transfer.dataset.manifest import Dataset, Shard, load_dataset
from transfer.dataset.splits import SPLITS
from transfer.errors import ConfigError, CorruptObjectError, DatasetError, ObjectNotFoundError, TrainingError
from transfer.features.layout import read_description, shards_in
from transfer.registry.images import Image, find_images
from transfer.storage import Store
from transfer.training.run import load_run

MOST_PARTS = 64
"""Parts of fewer images than this makes are not worth dividing further, so that all workers end at about one time."""
FEWEST_ROWS, MOST_ROWS = 256, 8192
"""Rows of a part of listed images, but for the last one."""
MOST_BYTES = 64 * 1024**2
"""Of the probabilities in a part: a worker holds those of two parts, each as answers and as a table."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of the predictions: some images, or some of a shard."""

    number: int
    """From 0 on."""
    count: int
    """Number of all parts."""
    images: tuple[Image, ...] = ()
    shard: Shard | None = None
    shard_rows: range = range(0)
    has_features: bool = False
    """Whether features of the shard are cached that the model's head can answer from."""

    @property
    def name(self) -> str:
        """Its file in a folder of predictions."""
        return layout.predictions_part(self.number, self.count)

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.shard_rows) if self.shard else len(self.images)


@dataclass(frozen=True)
class Listing:
    """All that is predicted."""

    source: str
    """The dataset version, or `images`."""
    class_count: int
    """Of the version that predicts."""
    images: Sequence[Image] = ()
    dataset: Dataset | None = None
    shards: Sequence[Shard] = ()
    """Of `dataset`."""
    with_features: frozenset[str] = frozenset()
    """SHA-256 of the shards whose features are cached."""

    @property
    def rows(self) -> int:
        """Number of images."""
        return len(self.images) + sum(shard.rows for shard in self.shards)

    @property
    def rows_per_part(self) -> int:
        """Rows of each part but the last one, or the last one of a shard."""
        most = max(MOST_BYTES // (4 * self.class_count), 1)
        return most if self.shards else min(max(-(-self.rows // MOST_PARTS), FEWEST_ROWS), MOST_ROWS, most)

    @property
    def part_count(self) -> int:
        """Number of parts."""
        divided = [shard.rows for shard in self.shards] or [len(self.images)]
        return sum(-(-rows // self.rows_per_part) for rows in divided)

    def parts(self) -> Iterator[Part]:
        """All parts in order."""
        size, numbers, count = self.rows_per_part, itertools.count(), self.part_count
        for start in range(0, len(self.images), size):
            yield Part(next(numbers), count, tuple(self.images[start : start + size]))
        for shard in self.shards:
            has_features = shard.sha256 in self.with_features
            for start in range(0, shard.rows, size):
                rows = range(start, min(start + size, shard.rows))
                yield Part(next(numbers), count, shard=shard, shard_rows=rows, has_features=has_features)

    @property
    def digest(self) -> str:
        """SHA-256 of the names of all images in their order, with their sizes."""
        sha256 = hashlib.sha256()
        for image in self.images:
            line = f"{image.key}\0{image.place}\0{image.size_bytes}\n"
            sha256.update(line.encode("utf-8", "surrogateescape"))
        for shard in self.shards:
            sha256.update(f"{shard.sha256}\n".encode())
        return sha256.hexdigest()


def listed_images(config: Config, version: ModelVersion, places: Sequence[str]) -> Listing:
    """The images at `places`, for a version to predict. Raises what `find_images` raises."""
    found = find_images(places, config.storage, path_column=config.dataset.path_column)
    return Listing("images", len(version.classes), images=found)


def listed_dataset(config: Config, store: Store, version: ModelVersion, name: str, split: str | None) -> Listing:
    """The images of a dataset version, `NAME` or `NAME@NUMBER`, or those of one split.

    Raises ConfigError for another notation or an unknown split, DatasetError if there is no such version or no image.
    """
    match = re.fullmatch(r"([^@]+)(?:@0*([1-9][0-9]*))?", name)
    if not match or split not in {None, *SPLITS}:
        raise ConfigError(
            f"The dataset version to predict is `{name}`{f', its split `{split}`' if split else ''}.",
            advice=f"Give --dataset NAME or NAME@NUMBER, and as --split one of {', '.join(SPLITS)}.",
        )
    number = int(match[2]) if match[2] else None
    try:
        dataset = load_dataset(store, match[1], number)
    except ObjectNotFoundError:
        raise DatasetError(
            f"There is no version {number} of the dataset `{match[1]}` in {store.uri}.",
            advice="`transfer datasets list` shows the versions.",
        ) from None
    shards = [shard for shard in dataset.shards if split in {None, shard.split}]
    if not shards:
        raise DatasetError(f"{_named(dataset, split)} has no images.", advice="Give another split or version.")
    cached = shards_with_features(config, store, version)
    with_features = frozenset(cached & {shard.sha256 for shard in shards})
    source = _named(dataset, split)
    return Listing(source, len(version.classes), dataset=dataset, shards=shards, with_features=with_features)


def shards_with_features(config: Config, store: Store, version: ModelVersion) -> set[str]:
    """SHA-256 of the shards whose features are cached that the head of a version can answer from.

    None are if a phase trained the base, or nothing was trained. Features are found by what the run used, so no network
    is built for that.
    """
    if version.trained is None:
        return set()
    try:
        run = load_run(store, version.trained.run, config)
    except (TrainingError, CorruptObjectError, ObjectNotFoundError):
        return set()
    if not run.config.trains_head_only or run.config.features.cache == "never":
        return set()
    used = {digest for number in run.uses.numbers() for digest in run.uses.read_as(Attempt, number).frozen_parts}
    found: set[str] = set()
    for digest in used:
        description = read_description(store, digest)
        if description and description.get("view") is None:
            found |= shards_in(store, digest)
    return found


def _named(dataset: Dataset, split: str | None) -> str:
    return f"{dataset.reference}, {split}" if split else dataset.reference
