"""A comparison as units of work: what a process that can load both versions does for some shards."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.config import Config
from transfer.dataset.index import ImageIndex
from transfer.dataset.manifest import Dataset, Shard
from transfer.evaluation.units import INDEXED, Picture, Unit, UnitImages, first_images
from transfer.registry.comparison import Answered, HeldOut, Judged, judge
from transfer.registry.describe import NeverTrainedOn
from transfer.runtime.startup import import_tensorflow
from transfer.storage import Store, open_store

if TYPE_CHECKING:
    from transfer.evaluation.run_answers import RunAnswers
    from transfer.registry.published_model import Answers

LATENCY_IMAGES = 30
_WARM_UP_IMAGES = 3
HEADS_PAY_IMAGES = 500
"""With fewer images to compare on, building the base of a head takes longer than asking the exported model."""


@dataclass(frozen=True)
class Rehearsed:
    """What asking about the first images showed, for each version.

    `latencies_ms`: median time of the exported model for one image. `by_head`: whether its head answers from cached
    features, as the exported model does from images.
    """

    latencies_ms: list[float]
    by_head: tuple[bool, ...]


@dataclass(frozen=True)
class UnitJudged:
    """What is told of the images of a unit. `pictures`: of `judged.flips`, by SHA-256."""

    judged: Judged
    pictures: dict[str, Picture]


class ComparisonWork:
    """Asks versions, first the challenger, then the champion if there is one, about the images of a dataset version.

    `known`: the classes of each version, named as in the dataset version. `held_out`: of the champion.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        versions: Sequence[ModelVersion],
        known: Sequence[list[str]],
        held_out: NeverTrainedOn | None,
    ) -> None:
        import_tensorflow()
        self._store, self._dataset, self._known, self._held_out = open_store(config.storage), dataset, known, held_out
        self._index = ImageIndex(self._store, dataset, INDEXED)
        self._contenders = [_Asked(self._store, config, version) for version in versions]

    def __call__(self, asked: Sequence[Shard] | tuple[Unit, tuple[bool, ...]]) -> Rehearsed | UnitJudged:
        """Judge a unit, given which versions answer by their heads; or rehearse, given all shards of the split."""
        return self._judge(*asked) if isinstance(asked, tuple) else self._rehearse(asked)

    def _rehearse(self, shards: Sequence[Shard]) -> Rehearsed:
        images = first_images(self._store, shards, LATENCY_IMAGES)
        latencies = latencies_ms([each.exported for each in self._contenders], images)
        if sum(shard.rows for shard in shards) < HEADS_PAY_IMAGES:
            return Rehearsed(latencies, (False,) * len(latencies))
        return Rehearsed(latencies, tuple(each.head_agrees(shards, images) for each in self._contenders))

    def _judge(self, unit: Unit, by_head: tuple[bool, ...]) -> UnitJudged:
        images = UnitImages(self._store, self._index, unit, whole=not all(by_head))
        comparable = np.ones(len(images), bool) if self._held_out is None else self._held_out.of(images.digests)
        held_out = HeldOut(images.keys, images.digests, images.labels, comparable, self._dataset.classes)
        answered = [
            Answered(known, contender.probabilities(unit.shards, images, by_head=is_by_head))
            for known, contender, is_by_head in zip(self._known, self._contenders, by_head, strict=True)
        ]
        judged = judge(held_out, answered[0], answered[1] if len(answered) > 1 else None)
        return UnitJudged(judged, images.pictures(flip.sha256 for flip in judged.flips))


class _Asked:
    """A version: its exported model, and its head if that can answer. Both are loaded when they are first asked."""

    def __init__(self, store: Store, config: Config, version: ModelVersion) -> None:
        self._store, self._config, self._version = store, config, version
        self._loaded: Answers | None = None

    def exported(self, encoded: list[bytes]) -> dict[str, Any]:
        """The outputs of the exported model for encoded images."""
        from transfer.registry.published_model import load_answers

        if self._loaded is None:
            with tempfile.TemporaryDirectory() as folder:
                self._loaded = load_answers(self._store, self._version, Path(folder))
        return self._loaded(encoded)

    @cached_property
    def head(self) -> RunAnswers | None:
        """The head of the version's run, if it takes cached features and is the one that was exported."""
        from transfer.registry.head_answers import head_of

        return head_of(self._config, self._store, self._version)

    def head_agrees(self, shards: Sequence[Shard], first: list[bytes]) -> bool:
        """Whether the head has all features of `shards`, and answers about the first images as the exported model."""
        from transfer.registry.head_answers import is_as_exported

        if self.head is None or not self.head.has_features(shards):
            return False
        by_head = self.head.by_features(shards[:1])
        if by_head is None:
            return False
        rows = min(len(first), len(by_head))
        return is_as_exported(self._version, by_head[:rows], self.exported(first[:rows])["probabilities"])

    def probabilities(self, shards: Sequence[Shard], images: UnitImages, *, by_head: bool) -> np.ndarray:
        """Probabilities float32 [n, classes] for all images of a unit."""
        from transfer.registry.published_model import probabilities_of

        found = self.head.by_features(shards) if by_head and self.head is not None else None
        return probabilities_of(self.exported, images) if found is None else found


def latencies_ms(models: Sequence[Callable[[list[bytes]], object]], images: Sequence[bytes]) -> list[float]:
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
