"""Whether each phase of a run trains on pixels or on cached features: decided once for the run, and recorded.

Features that are smaller than the encoded image are cached, because an epoch from pixels would read more bytes and also
decode them. Larger features are cached if computing them takes more than reading them: from so many multiply-adds a
byte on. A feature map of an early layer is not cached: it is cheap to compute and many times larger than the image.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import prod

from pydantic import BaseModel, ConfigDict

from transfer.backbone.blocks import network_flops
from transfer.catalog.run import Attempt
from transfer.config import Config, PhaseConfig
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import AlreadyExistsError, ConfigError, TrainingError
from transfer.features.engines import sees_gpu
from transfer.features.extract import Extractor
from transfer.features.frozen import FrozenPart, frozen_parts_of
from transfer.features.layout import Extraction, Request
from transfer.features.store import CachedRows, FeatureStore
from transfer.runtime.numbers import size
from transfer.storage import now_utc
from transfer.training.model import TransferModel
from transfer.training.rows import FOLDED_SPLITS
from transfer.training.run import Run
from transfer.training.samples import CachedSplit

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")

MULTIPLY_ADDS_A_BYTE = 250
"""Features that take fewer multiply-adds for each of their bytes are computed again.

Derived for 10 epochs, 94 billion multiply-adds a second (MobileNetV2 on 2 cores), and storage that writes 100 MB/s and
reads 500 MB/s. Caching may take 1.25 times as long as computing again, because later runs read the features, too."""
GPU_MULTIPLY_ADDS_A_BYTE = 25_000
"""The same limit for a GPU with 10 trillion multiply-adds a second. This is a guess, not a measurement."""


class CacheChoice(BaseModel):
    """Whether a phase trains on cached features, and why."""

    model_config = ConfigDict(frozen=True)

    cached: bool
    reason: str

    @property
    def explained(self) -> str:
        """One sentence for people."""
        return f"{'on cached features' if self.cached else 'from pixels'}: {self.reason}."


@dataclass(frozen=True)
class CachedInputs:
    """The cached features of a phase: the training split, once for each view, and the validation split."""

    train: list[CachedSplit]
    validation: CachedSplit | None


class FeaturePlan:
    """Decides, caches and opens the features that the phases of a run train on."""

    def __init__(self, run: Run, dataset: Dataset, model: TransferModel) -> None:
        """Must be called before any weight is trained, because cached features belong to the pretrained network.

        Raises ConfigError for a run of a fold if a phase cannot train on cached features, or trains on views.
        """
        config = run.config
        self._run = run
        self._dataset = dataset
        self._extractor = Extractor(run.store, engine=config.features.engine)
        self._reasons = [_why_not_cached(run, index, model) for index in range(len(config.phases))]
        if run.fold is not None:
            self._check_folds()
        self._frozen_parts = [
            {} if reason else frozen_parts_of(config, model.backbone, requests_of(config, phase))
            for phase, reason in zip(config.phases, self._reasons, strict=True)
        ]

    @cached_property
    def choices(self) -> list[CacheChoice]:
        """The choice for each phase: the recorded one, or decided and recorded now if the run is new."""
        log = self._run.inputs
        if not log.newest_number():
            choices = [self._choice(index) for index in range(len(self._reasons))]
            for index, choice in enumerate(choices):
                logger.info("Phase %d trains %s", index, choice.explained)
            # If another worker is first, its choices count.
            with suppress(AlreadyExistsError):
                log.append({"phases": [choice.model_dump(mode="json") for choice in choices]}, number=1)
        return [CacheChoice.model_validate(choice) for choice in log.read(1)["phases"]]

    def extract(self, phases: Container[int] | None = None) -> Extraction:
        """Compute in this process those features of some phases (default: all) that are not cached yet."""
        self.claim()
        return self._extractor.extract_all(self._wanted(phases))

    def requests(self, phases: Container[int] | None = None) -> list[Request]:
        """The features to cache for some phases (default: all), in a form that needs no TensorFlow."""
        config = self._run.config
        asked = [config.phases[index] for index in self._cached_among(phases)]
        return [request for phase in asked for request in requests_of(config, phase)]

    def claim(self) -> None:
        """Record an attempt at this run with the frozen parts that it uses.

        `transfer runs gc` and `transfer cache gc` do not remove what a recent attempt uses. So this must be called
        before the run looks for cached features.
        """
        frozen_parts = [
            frozen_part for phase in self._frozen_parts for of_split in phase.values() for frozen_part in of_split
        ]
        digests = sorted({frozen_part.digest for frozen_part in frozen_parts})
        self._run.uses.append(Attempt(frozen_parts=tuple(digests), started=now_utc()).model_dump(mode="json"))

    def open(self, phase: int) -> CachedInputs | None:
        """The cached features of a phase; None if it trains on pixels.

        Raises TrainingError if some of them were removed or are damaged.
        """
        if not self.choices[phase].cached:
            return None
        frozen_parts = self._frozen_parts[phase]
        plain = frozen_parts["validation"][0]
        if self._run.fold is not None:
            both = self._cached(self._shards(FOLDED_SPLITS), plain)
            parts = self._run.fold.rows(self._run.store, self._dataset)
            trained, validated = (CachedSplit(*both, only=rows) for rows in parts)
            return CachedInputs([trained], validated)
        shards = {split: self._shards([split]) for split in _SPLITS}
        train = [CachedSplit(*self._cached(shards["train"], view)) for view in frozen_parts["train"]]
        return CachedInputs(
            train, CachedSplit(*self._cached(shards["validation"], plain)) if shards["validation"] else None
        )

    def open_some(self, phase: int, shards: Sequence[Shard]) -> CachedSplit:
        """A phase's cached features of some shards of the training split. If the phase has views, those of the first.

        Raises TrainingError if some of them were removed or are damaged.
        """
        return CachedSplit(*self._cached(shards, self._frozen_parts[phase]["train"][0]))

    def _cached(self, shards: Sequence[Shard], frozen_part: FrozenPart) -> tuple[Sequence[Shard], list[CachedRows]]:
        """The features of some shards, and these shards."""
        rows = FeatureStore(self._run.store, frozen_part).open_all(shards)
        missing = rows.count(None)
        if missing:
            splits = sorted({shard.split for shard in shards})
            raise TrainingError(
                f"Of the {len(shards)} shards of {' and '.join(splits)}, {missing} have no intact features (up to "
                f"{frozen_part.cut}) in {self._run.store.uri}.",
                advice="They were removed or damaged meanwhile. Repeat the command: it computes what is missing.",
            )
        return shards, [row for row in rows if row is not None]

    def _cached_among(self, phases: Container[int] | None) -> list[int]:
        """Indices of those of `phases` (default: all) that train on cached features."""
        indices = (index for index, choice in enumerate(self.choices) if choice.cached)
        return [index for index in indices if phases is None or index in phases]

    def _wanted(self, phases: Container[int] | None) -> list[tuple[list[Shard], list[FrozenPart]]]:
        """Shards with the frozen parts to compute for them. Each item is one pass over the images of its shards."""
        splits: dict[str, set[str]] = {}
        frozen_parts: dict[str, FrozenPart] = {}
        for index in self._cached_among(phases):
            for split, of_split in self._frozen_parts[index].items():
                for frozen_part in of_split:
                    frozen_parts[frozen_part.digest] = frozen_part
                    splits.setdefault(frozen_part.digest, set()).add(split)
        together: dict[tuple[str, ...], list[FrozenPart]] = {}
        for digest, needed_for in splits.items():
            together.setdefault(tuple(sorted(needed_for)), []).append(frozen_parts[digest])
        return [(self._shards(needed_for), group) for needed_for, group in together.items()]

    def _shards(self, splits: Iterable[str]) -> list[Shard]:
        return [shard for split in splits for shard in self._dataset.shards_of(split)]

    def _check_folds(self) -> None:
        """Raise ConfigError unless every phase has one cached feature for each image of both splits."""
        config = self._run.config
        for index, (phase, reason) in enumerate(zip(config.phases, self._reasons, strict=True)):
            views = phase.augment and config.augmentation.is_active
            why = reason or ("images that are augmented cannot be validated on as they are" if views else None)
            if why:
                raise ConfigError(
                    f"Phase {index} cannot be cross-validated (sweep.folds), which rests on cached features: {why}.",
                    advice="Leave such trials out of sweep.space, or set sweep.folds to 0.",
                )

    def _choice(self, index: int) -> CacheChoice:
        reason, frozen_parts = self._reasons[index], self._frozen_parts[index]
        if reason:
            return CacheChoice(cached=False, reason=reason)
        if self._run.fold is not None:
            return CacheChoice(cached=True, reason="cross-validation rests on them")
        if self._run.config.features.cache == "always":
            return CacheChoice(cached=True, reason="features.cache is `always`")
        if frozen_parts["train"][0].view is not None:
            return CacheChoice(cached=True, reason=f"augmentation.views is {len(frozen_parts['train'])}")
        frozen_part, shards = frozen_parts["validation"][0], self._shards(_SPLITS)
        if not self._extractor.plan(shards, [frozen_part]):
            return CacheChoice(cached=True, reason="all of them are cached already")
        return choose_caching(frozen_part, shards)


def requests_of(config: Config, phase: PhaseConfig) -> list[Request]:
    """The features to cache for a phase: of train and validation and, if no phase trains the base, of test."""
    augmented = phase.augment and config.augmentation.is_active
    views = range(config.augmentation.views) if augmented else [None]
    train = [Request("train", phase.unfreeze, view) for view in views]
    requests = [*train, Request("validation", phase.unfreeze)]
    # If no phase trains the base, evaluation uses cached features, too: they are computed in the same pass.
    return [*requests, Request("test", phase.unfreeze)] if config.trains_head_only else requests


def _why_not_cached(run: Run, index: int, model: TransferModel) -> str | None:
    """Why the features of a phase cannot be cached; None if they can."""
    config = run.config
    phase, augmentation = config.phases[index], config.augmentation
    if config.features.cache == "never":
        return "features.cache is `never`"
    if phase.augment and augmentation.is_active and not augmentation.views:
        return "every image is augmented anew in every epoch (augmentation.views is 0)"
    frozen, _ = model.backbone.cut(phase.unfreeze)
    if frozen is None:
        return "nothing is frozen"
    changed = {id(variable) for variable in model.changed_by(config.phases[:index])}
    if any(id(weight) in changed for weight in frozen.weights):
        return "its frozen part is trained by an earlier phase"
    return None


def choose_caching(frozen_part: FrozenPart, shards: Sequence[Shard]) -> CacheChoice:
    """Decide whether to cache the features of the images in `shards`, or to compute them again in every epoch."""
    if len(frozen_part.shape) == 1:
        # A vector comes out of the whole base. The rule below needs multiply-adds, which are unknown for some bases.
        return CacheChoice(cached=True, reason=f"a vector of {prod(frozen_part.shape):,} numbers an image")
    row_bytes = frozen_part.row_bytes
    image_bytes = sum(shard.size_bytes for shard in shards) / sum(shard.rows for shard in shards)
    sizes = f"{size(row_bytes)} an image, and the image itself has {size(image_bytes)}"
    if row_bytes <= image_bytes:
        return CacheChoice(cached=True, reason=sizes)
    found = network_flops(frozen_part.network) / row_bytes
    least = GPU_MULTIPLY_ADDS_A_BYTE if sees_gpu() else MULTIPLY_ADDS_A_BYTE
    compared = f"{found:,.0f} multiply-adds a byte, and from {least:,} on features are cached"
    return CacheChoice(cached=found >= least, reason=f"{sizes}; {compared}")
