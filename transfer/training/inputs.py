"""What each phase of a run trains on: pixels, or what is kept of its frozen part. Decided once a run and recorded.

runs/<run id>/inputs/00000001.json   for each phase: kept or not, why, and what was measured
runs/<run id>/uses/<n>.json          for each attempt: since when, and the digests of the prefixes that it relies on
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from transfer.activations.batches import KeptSplit
from transfer.activations.choice import Choice, Rates, choose, measure, smaller_than_images
from transfer.activations.extract import Extractor, prefixes_of
from transfer.activations.kept import Kept, KeptRows
from transfer.activations.prefix import Prefix
from transfer.activations.request import Extraction, Request, requests_of
from transfer.backbone.flops import network_flops
from transfer.config import PhaseConfig
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import AlreadyExistsError, ConfigError, TrainingError
from transfer.training.folds import FOLDED_SPLITS
from transfer.training.model import TransferModel
from transfer.training.run import Run

logger = logging.getLogger(__name__)

_SPLITS = ("train", "validation")


@dataclass(frozen=True)
class KeptInputs:
    """What is kept for a phase: the training split, once for each view, and the validation split."""

    train: list[KeptSplit]
    validation: KeptSplit | None


class Inputs:
    """Where the phases of a run get their frozen part's output from."""

    def __init__(self, run: Run, dataset: Dataset, model: TransferModel, *, sharing: int = 1) -> None:
        """Call it before any weight is trained: what is kept belongs to the pretrained network.

        `sharing`: runs that will train on the same frozen part, which makes keeping its output more worth while.

        Raises ConfigError for the run of a fold that has a phase without a frozen part to keep, or with views.
        """
        config = run.config
        self._run = run
        self._dataset = dataset
        self._sharing = sharing
        self._extractor = Extractor(run.store, engine=config.activations.engine)
        self._reasons = [_why_not_kept(run, index, model) for index in range(len(config.phases))]
        if run.fold is not None:
            self._check_folds()
        self._prefixes = [
            {} if reason else prefixes_of(config, model.backbone, requests_of(config, phase))
            for phase, reason in zip(config.phases, self._reasons, strict=True)
        ]

    @cached_property
    def choices(self) -> list[Choice]:
        """How each phase gets its frozen part's output: as the run began, or decided now if this is its beginning."""
        log = self._run.inputs
        if not log.numbers():
            choices = self._choose()
            for index, choice in enumerate(choices):
                logger.info("Phase %d trains %s", index + 1, choice.explained)
            # Another worker may be first: its choices count.
            with suppress(AlreadyExistsError):
                log.append({"phases": [choice.model_dump(mode="json") for choice in choices]}, number=1)
        return [Choice.model_validate(choice) for choice in log.read(1)["phases"]]

    def extract(self, phases: Container[int] | None = None) -> Extraction:
        """Compute, in this process, what some phases (default: all) will need and is not kept yet."""
        self.claim()
        return self._extractor.extract_all(self._wanted(phases))

    def requests(self, phases: Container[int] | None = None) -> list[Request]:
        """What is to be kept for some phases (default: all), as a driver without TensorFlow can pass it on."""
        config = self._run.config
        asked = [index for index, choice in enumerate(self.choices) if choice.kept and (not phases or index in phases)]
        return [request for index in asked for request in requests_of(config, config.phases[index])]

    def claim(self) -> None:
        """Note what an attempt at this run may rely on, so that `transfer cache gc` leaves it alone.

        To be called before anything looks at what is kept.
        """
        prefixes = [prefix for phase in self._prefixes for of_split in phase.values() for prefix in of_split]
        digests = sorted({prefix.digest for prefix in prefixes})
        if digests:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._run.uses.append({"prefixes": digests, "started": started})

    def open(self, phase: int) -> KeptInputs | None:
        """What is kept for a phase; None where it trains from pixels.

        Raises TrainingError when some of it is not there any more, or damaged.
        """
        if not self.choices[phase].kept:
            return None
        prefixes = self._prefixes[phase]
        plain = prefixes["validation"][0]
        if self._run.fold is not None:
            both = self._kept(self._shards(FOLDED_SPLITS), plain)
            trained, validated = (KeptSplit(*both, only=rows) for rows in self._run.fold.rows(self._dataset))
            return KeptInputs([trained], validated)
        shards = {split: self._shards([split]) for split in _SPLITS}
        train = [KeptSplit(*self._kept(shards["train"], view)) for view in prefixes["train"]]
        return KeptInputs(train, KeptSplit(*self._kept(shards["validation"], plain)) if shards["validation"] else None)

    def open_some(self, phase: int, shards: Sequence[Shard]) -> KeptSplit:
        """What is kept for a phase of some shards of the training split; of its views, if it has any, the first.

        Raises TrainingError when some of it is not there any more, or damaged.
        """
        return KeptSplit(*self._kept(shards, self._prefixes[phase]["train"][0]))

    def _kept(self, shards: Sequence[Shard], prefix: Prefix) -> tuple[Sequence[Shard], list[KeptRows]]:
        """What is kept of a prefix, shard by shard."""
        kept = Kept(self._run.store, prefix)
        rows = kept.open_all(shards)
        missing = rows.count(None)
        if missing:
            splits = sorted({shard.split for shard in shards})
            raise TrainingError(
                f"Of the {len(shards)} shards of {' and '.join(splits)}, {missing} have no intact output of the frozen "
                f"part (up to {prefix.cut}) in {self._run.store.uri}.",
                advice="It was removed or damaged meanwhile. Repeat the command: what is missing is computed again.",
            )
        return shards, [row for row in rows if row is not None]

    def _wanted(self, phases: Container[int] | None) -> list[tuple[list[Shard], list[Prefix]]]:
        """The prefixes that are to be kept, with the shards that they are needed for: one pass over the images each."""
        splits: dict[str, set[str]] = {}
        prefixes: dict[str, Prefix] = {}
        for index, (phase, choice) in enumerate(zip(self._prefixes, self.choices, strict=True)):
            is_asked = choice.kept and (phases is None or index in phases)
            for split, of_split in phase.items() if is_asked else ():
                for prefix in of_split:
                    prefixes[prefix.digest] = prefix
                    splits.setdefault(prefix.digest, set()).add(split)
        together: dict[tuple[str, ...], list[Prefix]] = {}
        for digest, needed_for in splits.items():
            together.setdefault(tuple(sorted(needed_for)), []).append(prefixes[digest])
        return [(self._shards(needed_for), group) for needed_for, group in together.items()]

    def _shards(self, splits: Iterable[str]) -> list[Shard]:
        return [shard for split in splits for shard in self._dataset.shards_of(split)]

    def _check_folds(self) -> None:
        """Raise ConfigError unless every phase can train and validate on what is kept of the same images."""
        config = self._run.config
        for index, (phase, reason) in enumerate(zip(config.phases, self._reasons, strict=True)):
            views = phase.augment and config.augmentation.is_active
            why = reason or ("images that are augmented cannot be validated on as they are" if views else None)
            if why:
                raise ConfigError(
                    f"Phase {index + 1} cannot be cross-validated (sweep.folds), which rests on what is kept of the "
                    f"frozen part: {why}.",
                    advice="Leave such trials out of sweep.space, or set sweep.folds to 0.",
                )

    def _choose(self) -> list[Choice]:
        rates = None
        choices = []
        for index, phase in enumerate(self._run.config.phases):
            choice = self._without_measuring(index)
            if choice is None:
                rates = rates or self._measure()
                choice = self._measured(rates, phase, self._prefixes[index]["validation"][0])
            choices.append(choice)
        return choices

    def _without_measuring(self, index: int) -> Choice | None:
        reason, prefixes = self._reasons[index], self._prefixes[index]
        if reason:
            return Choice(kept=False, reason=reason)
        if self._run.fold is not None:
            return Choice(kept=True, reason="cross-validation rests on it")
        if self._run.config.activations.keep == "always":
            return Choice(kept=True, reason="activations.keep is `always`")
        if prefixes["train"][0].view is not None:
            return Choice(kept=True, reason=f"augmentation.views is {len(prefixes['train'])}")
        prefix = prefixes["validation"][0]
        if not self._missing_images(prefix):
            return Choice(kept=True, reason="all of it is kept already")
        return smaller_than_images(prefix.row_bytes, self._shards(_SPLITS))

    def _measured(self, rates: Rates, phase: PhaseConfig, prefix: Prefix) -> Choice:
        most = max(network_flops(other.network) for other in self._plain_prefixes())
        return choose(
            rates=rates,
            row_bytes=prefix.row_bytes,
            flops_share=network_flops(prefix.network) / most,
            images=sum(self._dataset.rows(split) for split in _SPLITS),
            missing=self._missing_images(prefix),
            epochs=self._sharing * phase.epochs,
        )

    def _measure(self) -> Rates:
        """Rates of the forward pass that extraction makes if everything is kept."""
        rows = sum(self._dataset.rows(split) for split in _SPLITS)
        forward = self._extractor.forward(self._plain_prefixes(), rows=rows)
        return measure(self._run.store, self._dataset.shards_of("train")[0], forward, self._plain_prefixes()[0])

    def _plain_prefixes(self) -> list[Prefix]:
        return [phase["validation"][0] for phase in self._prefixes if phase]

    def _missing_images(self, prefix: Prefix) -> int:
        return sum(work.rows for work in self._extractor.plan(self._shards(_SPLITS), [prefix]))


def _why_not_kept(run: Run, index: int, model: TransferModel) -> str | None:
    """Why the output of a phase's frozen part cannot be kept, if so."""
    config = run.config
    phase, augmentation = config.phases[index], config.augmentation
    if config.activations.keep == "never":
        return "activations.keep is `never`"
    if phase.augment and augmentation.is_active and not augmentation.views:
        return "every image is augmented anew in every epoch (augmentation.views is 0)"
    frozen, _ = model.backbone.cut(phase.unfreeze)
    if frozen is None:
        return "nothing is frozen"
    trained = {id(variable) for variable in model.variables_of([earlier.unfreeze for earlier in config.phases[:index]])}
    if any(id(weight) in trained for weight in frozen.weights):
        return "its frozen part is trained by an earlier phase"
    return None
