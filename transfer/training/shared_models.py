"""Models of runs in this process, untrained or trained, on shared bases, heads and compiled steps.

All steps of a job, from its check to its export, share them, and so do the trials of a sweep: loading a network and
compiling a step takes longer than many a trial.

All models of `process_models()` share variables: a model's weights are valid until another model is requested.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation import Augmentation
from transfer.backbone.backbone import Backbone, set_precision
from transfer.backbone.identity import base_digests
from transfer.backbone.load import build_backbone
from transfer.backbone.projections import targets_in
from transfer.backbone.random_start import base_for, shards_of_sample
from transfer.config import Config, Decides, LoraConfig, PhaseConfig, Varies, deciding
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import BaseChangedError
from transfer.storage import Store
from transfer.training.checkpoints import Checkpoint, Checkpoints, assign
from transfer.training.lora import Adapter, build_adapters
from transfer.training.model import TransferModel, build_head_for
from transfer.training.rows import untrained_classes
from transfer.training.run import Run, hold_to_base
from transfer.training.step import PhaseProgram, create_strategy

MAX_BACKBONES = 2
MAX_HEADS = 8
MAX_ADAPTERS = 8
MAX_PROGRAMS = 8
"""Largest number of each kind; the least recently used one is dropped."""

Made = TypeVar("Made")


class Turn(Protocol):
    """A user of shared models, who can make room for the next user."""

    def suspend(self) -> None:
        """Copy all state out of the shared variables."""


@dataclass(frozen=True, eq=False)
class _Base:
    """A pretrained network, and its digest before any training."""

    backbone: Backbone
    digest: str
    number: int
    """Counts the bases that were built here. An `id()` would be reused after a dropped base is freed."""


class SharedModels:
    """Bases, heads and compiled steps, each built on first use. Their users take turns."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self._bases: OrderedDict[Hashable, _Base] = OrderedDict()
        self._numbers = itertools.count()
        self._heads: OrderedDict[Hashable, keras.Model] = OrderedDict()
        self._adapters: OrderedDict[Hashable, list[Adapter]] = OrderedDict()
        self._programs: OrderedDict[Hashable, PhaseProgram] = OrderedDict()
        self._pretrained: dict[int, tuple[keras.Variable, np.ndarray]] = {}
        """By id: variables of a base that some run trains, with their pretrained values."""
        self._turn: Turn | None = None

    def take_turn(self, who: Turn) -> bool:
        """Suspend the present user of the shared variables, and let `who` use them. False if `who` already does.

        The base then has its pretrained weights. Must be called within the strategy's scope, like the other methods.
        """
        if self._turn is who:
            return False
        if self._turn is not None:
            self._turn.suspend()
        self._turn = who
        for variable, value in self._pretrained.values():
            variable.assign(value)
        return True

    def model(self, config: Config, store: Store, dataset: Dataset, *, untrained: Sequence[int] = ()) -> TransferModel:
        """The untrained model of a configuration for a dataset version. Must be called when the user's turn begins.

        `store`: where the dataset version is. `untrained`: indices of the classes that the model never predicts. Raises
        BackboneError if the base cannot be loaded, ConfigError if the head does not fit the classes, BaseChangedError
        if a file is replaced while it is read, StorageError.
        """
        classes = dataset.classes
        base = self._base(config, lambda: base_for(config, store, dataset), shards_of_sample(dataset))
        first = build_head_for(base.backbone, config, classes, untrained=untrained)
        of_head = (
            base.number,
            config.head.model_dump_json(),
            len(classes),
            tuple(untrained),
            config.training.mixed_precision,
        )
        head = _made(self._heads, of_head, lambda: first, MAX_HEADS)
        if head is not first:
            for variable, value in zip(head.variables, first.variables, strict=True):
                variable.assign(value)
        adapters = {
            number: self._started_adapters(base, number, phase.unfreeze, phase.lora, seed=config.training.seed)
            for number, phase in enumerate(config.phases)
            if phase.lora is not None
        }
        return TransferModel(base.backbone, head, classes, digest=base.digest, adapters=adapters)

    def _started_adapters(
        self, base: _Base, number: int, unfreeze: int | str, lora: LoraConfig, *, seed: int
    ) -> list[Adapter]:
        """The adapters of phase `number` with their initial values. Raises BackboneError if there are no targets."""

        def build() -> list[Adapter]:
            _, unfrozen = base.backbone.cut(unfreeze)
            return build_adapters(targets_in(unfrozen, lora.targets, name=base.backbone.name), lora)

        of_adapters = (base.number, number, unfreeze, lora.model_dump_json())
        adapters = _made(self._adapters, of_adapters, build, MAX_ADAPTERS)
        for place, adapter in enumerate(adapters):
            adapter.start([seed, number, place])
        return adapters

    def forget_programs(self) -> None:
        """Free the compiled steps and the states of their optimisers, which only training needs."""
        self._programs.clear()

    def backbone(self, config: Config) -> Backbone:
        """The base of a configuration, whose weights are those of its present user. Raises what `model` raises.

        One with random weights has no statistics of images yet. Must be called within the strategy's scope.
        """
        return self._base(config, lambda: build_backbone(config)).backbone

    def _base(self, config: Config, build: Callable[[], Backbone], sample: Sequence[Shard] = ()) -> _Base:
        """`sample`: the shards on whose images a network with random weights is normalised."""
        set_precision(config.training.mixed_precision)
        # The digests are part of the key, because a file may have been replaced since a network was read from it.
        files = base_digests(config.base, storage=config.storage)
        of_base = (
            config.base.model_dump_json(),
            tuple(files.items()),
            config.storage.model_dump_json(),
            config.image_input,
            config.head.pooling,
            config.training.mixed_precision,
            tuple(shard.sha256 for shard in sample) if config.base.weights == "none" else (),
        )
        return _made(self._bases, of_base, lambda: self._build(config, files, build), MAX_BACKBONES)

    def _build(self, config: Config, files: dict[str, str], build: Callable[[], Backbone]) -> _Base:
        backbone = build()
        if base_digests(config.base, storage=config.storage) != files:
            raise BaseChangedError(
                f"A file of base.model, `{config.base.model}`, was replaced while it was read.",
                advice="Repeat the command.",
            )
        return _Base(backbone, backbone.digest(), next(self._numbers))

    def will_train(self, model: TransferModel, phases: Sequence[PhaseConfig]) -> None:
        """Note the values of the base's variables before phases change them, so that `take_turn` can restore them."""
        of_base = {id(variable) for variable in model.backbone.network.variables}
        for variable in model.changed_by(phases):
            if id(variable) in of_base and id(variable) not in self._pretrained:
                self._pretrained[id(variable)] = (variable, np.array(variable))

    def program(
        self,
        model: TransferModel,
        number: int,
        config: Config,
        *,
        class_weights: np.ndarray,
        steps_per_epoch: int,
    ) -> PhaseProgram:
        """The program of phase `number` of `config`, with a fresh optimiser. Must be called in the user's turn."""
        phase, training, adapters = config.phases[number], config.training, model.adapters.get(number, ())
        cut = model.cut(phase.unfreeze, adapters=adapters)
        augmentation = config.augmentation if phase.augment and config.augmentation.is_active else None

        def build() -> PhaseProgram:
            return PhaseProgram(
                cut,
                phase=phase,
                training=training,
                class_weights=class_weights,
                augmentation=Augmentation(augmentation) if augmentation else None,
                steps_per_epoch=steps_per_epoch,
            )

        compiled_in = [
            deciding(section, Decides.FEATURES, Decides.LEARNING, but=Varies.IN_PROGRAM)
            for section in (phase, training)
        ]
        of_program = (
            id(model.head),
            # A program holds the head and the adapters, so their ids are not those of others.
            tuple(map(id, adapters)),
            json.dumps(compiled_in),
            augmentation and augmentation.model_dump_json(),
            steps_per_epoch,
        )
        program = _made(self._programs, of_program, build, MAX_PROGRAMS)
        program.start(learning_rate=phase.learning_rate, class_weights=class_weights, seed=training.seed)
        return program


@functools.cache
def process_models() -> SharedModels:
    """The shared models of this process, so that no step of a job builds a network again."""
    return SharedModels(create_strategy())


def _made(shelf: OrderedDict[Any, Made], key: Hashable, make: Callable[[], Made], most: int) -> Made:
    """The shelf's object for a key, made now if there is none."""
    if key not in shelf:
        shelf[key] = make()
        if len(shelf) > most:
            shelf.popitem(last=False)
    shelf.move_to_end(key)
    return shelf[key]


def untrained_model(run: Run, dataset: Dataset) -> TransferModel:
    """The model of a run before training.

    Raises BaseChangedError if the base is not the one with which the run began, and what `SharedModels.model` raises.
    """
    shared = process_models()
    with shared.strategy.scope():
        shared.take_turn(_Visit())
        shared.forget_programs()
        untrained = untrained_classes(run.store, dataset, run.fold)
        model = shared.model(run.config, run.store, dataset, untrained=untrained)
    hold_to_base(run, model.digest)
    return model


def restore_model(run: Run, dataset: Dataset) -> tuple[TransferModel, Checkpoint]:
    """The trained model of a finished run, and its last checkpoint.

    Raises TrainingError if the run is not finished, and what `untrained_model` raises.
    """
    checkpoint = Checkpoints(run).complete()
    model = untrained_model(run, dataset)
    with process_models().strategy.scope():
        phases = run.config.phases
        process_models().will_train(model, phases)
        trained = model.variables_of(phases)
        assign(trained, checkpoint.weights)
        model.merge(range(len(phases)), but=trained)
    return model, checkpoint


class _Visit:
    """A user who trains nothing."""

    def suspend(self) -> None:
        """Do nothing: this user has no state in the variables."""
