"""What each phase of a run trains on: pixels, or what is kept of its frozen part. Decided once a run and recorded.

runs/<run id>/inputs/00000001.json   for each phase: kept or not, why, and what was measured
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass

from transfer.activations.batches import KeptSplit
from transfer.activations.choice import Choice, Rates, choose, flops_of, measure
from transfer.activations.extract import extract, open_kept
from transfer.activations.kept import Kept
from transfer.activations.prefix import Prefix, View, prefix_of
from transfer.config import Config, PhaseConfig
from transfer.dataset.manifest import Dataset
from transfer.errors import AlreadyExistsError
from transfer.storage import Log
from transfer.training.model import TransferModel
from transfer.training.run import Run

_SPLITS = ("train", "validation")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhasePrefixes:
    """The frozen part of a phase, which is still the pretrained one."""

    train: tuple[Prefix, ...]
    """As the training split sees it: once, or once for each view."""
    validation: Prefix


@dataclass(frozen=True)
class KeptInputs:
    """What is kept for a phase: the training split, once for each view, and the validation split."""

    train: list[KeptSplit]
    validation: KeptSplit | None


class Inputs:
    """Where the phases of a run get their frozen part's output from."""

    def __init__(self, run: Run, dataset: Dataset, model: TransferModel) -> None:
        """Call it before any weight is trained: what is kept belongs to the pretrained network."""
        self._run = run
        self._dataset = dataset
        self._backbone = model.backbone
        self._prefixes = [_prefixes(run.config, index, model) for index in range(len(run.config.phases))]
        self.choices = self._recorded_choices()

    def extract(self) -> None:
        """Compute, in this process, what the phases will need and is not kept yet."""
        engine = self._run.config.activations.engine
        for splits, prefixes in self.wanted().items():
            shards = [shard for split in splits for shard in self._dataset.shards_of(split)]
            extract(self._run.store, shards, prefixes, backbone=self._backbone, engine=engine)

    def wanted(self) -> dict[tuple[str, ...], list[Prefix]]:
        """The prefixes that are to be kept, by the splits they are needed for."""
        wanted: dict[tuple[str, ...], list[Prefix]] = {}
        for phase, choice in zip(self._prefixes, self.choices, strict=True):
            if not choice.kept or isinstance(phase, str):
                continue
            if phase.train == (phase.validation,):
                wanted.setdefault(("train", "validation"), []).append(phase.validation)
            else:
                wanted.setdefault(("train",), []).extend(phase.train)
                wanted.setdefault(("validation",), []).append(phase.validation)
        return wanted

    def open(self, phase: int) -> KeptInputs | None:
        """What is kept for a phase; None where it trains from pixels. Raises ActivationsError when some is missing."""
        prefixes = self._prefixes[phase]
        if isinstance(prefixes, str) or not self.choices[phase].kept:
            return None
        validation = self._split("validation", prefixes.validation) if self._dataset.rows("validation") else None
        return KeptInputs([self._split("train", view) for view in prefixes.train], validation)

    def _split(self, split: str, prefix: Prefix) -> KeptSplit:
        shards = self._dataset.shards_of(split)
        return KeptSplit(shards, open_kept(self._run.store, prefix, shards))

    def _recorded_choices(self) -> list[Choice]:
        """The choices that the run began with; made and recorded if this is its beginning."""
        log = Log(self._run.store, f"{self._run.prefix}/inputs")
        if not log.numbers():
            choices = self._choose()
            # Another worker may be first: its choices count.
            with suppress(AlreadyExistsError):
                log.append({"phases": [choice.model_dump(mode="json") for choice in choices]}, number=1)
            for index, choice in enumerate(choices):
                logger.info("Phase %d %s: %s.", index + 1, "is kept" if choice.kept else "from pixels", choice.reason)
        return [Choice.model_validate(choice) for choice in log.read(1)["phases"]]

    def _choose(self) -> list[Choice]:
        rates = None
        choices = []
        for phase, prefixes in zip(self._run.config.phases, self._prefixes, strict=True):
            choice = self._without_measuring(prefixes)
            if choice is None:
                rates = rates or self._measure()
                choice = self._measured(rates, phase, prefixes)
            choices.append(choice)
        return choices

    def _without_measuring(self, prefixes: PhasePrefixes | str) -> Choice | None:
        if isinstance(prefixes, str):
            return Choice(kept=False, reason=prefixes)
        if self._run.config.activations.keep == "always":
            return Choice(kept=True, reason="activations.keep is `always`")
        if prefixes.train != (prefixes.validation,):
            return Choice(kept=True, reason=f"augmentation.views is {len(prefixes.train)}")
        if not self._missing_images(prefixes.validation):
            return Choice(kept=True, reason="all of it is kept already")
        return None

    def _measured(self, rates: Rates, phase: PhaseConfig, prefixes: PhasePrefixes) -> Choice:
        prefix = prefixes.validation
        return choose(
            rates=rates,
            row_bytes=prefix.row_bytes,
            flops_share=flops_of(prefix) / max(flops_of(other) for other in self._plain_prefixes()),
            images=sum(self._dataset.rows(split) for split in _SPLITS),
            missing=self._missing_images(prefix),
            epochs=phase.epochs,
        )

    def _measure(self) -> Rates:
        """Rates of the forward pass that extraction would make if everything were kept."""
        engine = self._run.config.activations.engine
        return measure(self._run.store, self._dataset.shards_of("train")[0], self._plain_prefixes(), engine=engine)

    def _plain_prefixes(self) -> list[Prefix]:
        return [phase.validation for phase in self._prefixes if not isinstance(phase, str)]

    def _missing_images(self, prefix: Prefix) -> int:
        kept = Kept(self._run.store, prefix).shards()
        shards = [shard for split in _SPLITS for shard in self._dataset.shards_of(split)]
        return sum(shard.rows for shard in shards if shard.sha256 not in kept)


def _prefixes(config: Config, index: int, model: TransferModel) -> PhasePrefixes | str:
    """The frozen part of a phase as it can be kept, or why it cannot."""
    phase, augmentation = config.phases[index], config.augmentation
    if config.activations.keep == "never":
        return "activations.keep is `never`"
    augmented = phase.augment and augmentation.is_active
    if augmented and not augmentation.views:
        return "every image is augmented anew in every epoch (augmentation.views is 0)"
    prefix = prefix_of(model.backbone, phase.unfreeze, map_dtype=config.activations.map_dtype)
    if prefix is None:
        return "nothing is frozen"
    trained = {id(variable) for variable in model.variables_of([earlier.unfreeze for earlier in config.phases[:index]])}
    if any(id(weight) in trained for weight in prefix.network.weights):
        return "its frozen part is trained by an earlier phase"
    if not augmented:
        return PhasePrefixes((prefix,), prefix)
    views = (View(augmentation, config.training.seed, view) for view in range(augmentation.views))
    return PhasePrefixes(tuple(prefix.seen_as(view) for view in views), prefix)
