"""Packs: trials that train only their heads, side by side as one program. Each trial has its own run.

A pack's checkpoint has the progress of every trial after an epoch, and names one file of arrays: the weights and
optimiser states of the trials that are still trained. Checkpoints of the runs would be three objects a trial and epoch.

`tuning/plan.py` decides from the configurations which trials can be in one pack.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transfer.catalog import layout
from transfer.catalog.run import EpochRow, Progress
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.errors import DivergedError
from transfer.runtime.memory import for_training, memory_explained
from transfer.storage import Log, Store
from transfer.training.checkpoints import Checkpoint, Checkpoints, keep_last, newest_intact, put_arrays, read_arrays
from transfer.training.feature_plan import CachedInputs
from transfer.training.history import write_events
from transfer.training.loop import after_epoch, after_phase
from transfer.training.model import CutModel, build_head
from transfer.training.pack_head import Trials, build_pack_head, restore_optimizer, states_of
from transfer.training.rows import class_weights, untrained_classes
from transfer.training.run import Run
from transfer.training.samples import CachedSamples
from transfer.training.step import PhaseProgram, Totals
from transfer.training.warm_start import warm_start

logger = logging.getLogger(__name__)

THREADS = 8
"""Threads that read and write objects of single runs. In a bucket each object takes a round trip."""


@dataclass
class PackedTrial:
    """One trial of a pack."""

    run: Run
    now: Checkpoint
    """The state at the end of its last epoch; without arrays if it is not trained any more."""
    best: Checkpoint | None = None
    """The state at the end of its best epoch so far, if its phase has early stopping."""
    is_live: bool = True
    failure: DivergedError | None = None

    @property
    def ended(self) -> bool:
        """Whether the trial has no epoch left, and leaves the pack if it has not yet."""
        return self.failure is not None or self.now.progress.complete

    def note_epoch(
        self,
        trained: Totals,
        validated: Totals | None,
        state: tuple[list[np.ndarray], list[np.ndarray]],
        *,
        steps: int,
        learning_rate: float,
        seconds: float,
    ) -> None:
        """Note the end of an epoch. `state`: the weights and the optimiser's state. `steps`: number of its steps."""
        before = self.now.progress
        # Any increasing number would do: `leave` numbers the checkpoints that it writes.
        number = before.epoch + 1
        try:
            progress, ended = after_epoch(
                before.model_copy(update={"step": steps, "global_step": before.global_step + steps}),
                self.run.config.phases[0],
                trained=trained,
                validated=validated,
                learning_rate=learning_rate,
                seconds=seconds,
                checkpoint=number,
            )
        except DivergedError as error:
            self.failure = error
            return
        self.now = Checkpoint(progress, *state)
        if progress.best_checkpoint == number:
            self.best = self.now
        if ended:
            best = self.best or self.now
            self.now, self.best = Checkpoint(after_phase(progress, phases=1), best.weights, []), None

    def leave(self) -> None:
        """End the trial's training here. Write to its run the result, or the checkpoints from which it can continue."""
        self.is_live = False
        checkpoints = Checkpoints(self.run)
        newest = checkpoints.last_entry()
        # An earlier attempt may have written the result before it was killed.
        if self.now.progress.history and not (newest and newest[1].progress.complete):
            number = newest[0] + 1 if newest else 1
            is_behind = self.best is not None and self.best.progress.epoch < self.now.progress.epoch
            for place, each in enumerate([self.best, self.now] if self.best and is_behind else [self.now]):
                best_checkpoint = {"best_checkpoint": number} if self.best else {}
                progress = each.progress.model_copy(update=best_checkpoint)
                checkpoints.save(number + place, progress, weights=each.weights, optimizer=each.optimizer)
            write_events(self.run, *self.now.progress.history)
        self.now, self.best = Checkpoint(self.now.progress, [], []), None


class PackCheckpoints:
    """Writes and reads checkpoints of whole packs."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._log = Log(store, layout.checkpoints_log(folder))
        self._next = self._log.newest_number() + 1

    def save(self, members: Sequence[PackedTrial]) -> None:
        """Write the states of all members. Raises AlreadyExistsError if another process trains the same pack."""
        arrays: dict[int, tuple[int, np.ndarray]] = {}
        documents = [
            {
                "run": member.run.id,
                "live": member.is_live,
                "failure": [member.failure.message, member.failure.advice] if member.failure else None,
                "now": _document(member.now, arrays),
                "best": _document(member.best, arrays) if member.best else None,
            }
            for member in members
        ]
        all_arrays = [array for _, array in arrays.values()]
        digest = put_arrays(self._store, self._folder, all_arrays, number=self._next)
        self._log.append({"members": documents, "arrays": digest}, number=self._next)
        self._next += 1

    def restore(self, runs: Sequence[Run]) -> list[PackedTrial] | None:
        """The states of these runs in the newest intact checkpoint; None if it does not have all of them."""

        def read(number: int) -> tuple[dict[str, Any], list[np.ndarray]]:
            document = self._log.read(number)
            members = {member["run"]: member for member in document["members"]}
            return members, read_arrays(self._store, self._folder, document["arrays"])

        members, arrays = newest_intact(read, self._log.numbers(), of=f"pack {self._folder}") or ({}, [])
        if any(run.id not in members for run in runs):
            return None
        return [_member(run, members[run.id], arrays) for run in runs]


def _document(at: Checkpoint, arrays: dict[int, tuple[int, np.ndarray]]) -> dict[str, Any]:
    """A state as JSON, with the places of its arrays in a file that has each array once.

    `arrays`: by id, (place, array) of the arrays that are in the file so far; new ones are added to it.
    """

    def places(own: Sequence[np.ndarray]) -> list[int]:
        return [arrays.setdefault(id(array), (len(arrays), array))[0] for array in own]

    return {
        "progress": at.progress.model_dump(mode="json"),
        "weights": places(at.weights),
        "optimizer": places(at.optimizer),
    }


def _checkpoint(document: dict[str, Any], arrays: list[np.ndarray]) -> Checkpoint:
    weights, optimizer = ([arrays[place] for place in document[name]] for name in ("weights", "optimizer"))
    return Checkpoint(Progress.model_validate(document["progress"]), weights, optimizer)


def _member(run: Run, document: dict[str, Any], arrays: list[np.ndarray]) -> PackedTrial:
    failure = document["failure"]
    return PackedTrial(
        run=run,
        now=_checkpoint(document["now"], arrays),
        best=_checkpoint(document["best"], arrays) if document["best"] else None,
        is_live=document["live"],
        failure=DivergedError(failure[0], advice=failure[1]) if failure else None,
    )


@dataclass(frozen=True)
class _Engine:
    """The program that trains some members side by side, with its head and its samples."""

    members: list[PackedTrial]
    """The trials, in the order of the program."""
    head: keras.Model
    program: PhaseProgram
    samples: CachedSamples


class Pack:
    """Trials of one dataset version with the same `pack_key`, trained an epoch at a time.

    After each epoch the whole pack writes one checkpoint in `folder`. A pack of the same runs, or some of them,
    continues from it. A run itself is written to once: when its trial ends, fails, or is stopped.
    """

    def __init__(self, runs: Sequence[Run], dataset: Dataset, cached: CachedInputs, *, folder: str) -> None:
        """`cached`: the features that all runs train on. `folder`: the pack's folder in storage."""
        self._dataset = dataset
        self._cached = cached
        self._common = runs[0].config
        self._fold = runs[0].fold
        self._untrained = untrained_classes(runs[0].store, dataset, self._fold)
        self._steps = steps_per_epoch(len(cached.train[0]), self._common.training.batch_size)
        self._store, self._folder = runs[0].store, folder
        self._checkpoints = PackCheckpoints(runs[0].store, folder)
        restored = self._checkpoints.restore(runs)
        members = restored or self._fresh(runs)
        self._members = {member.run.id: member for member in members}
        self._engine: _Engine | None = None
        if restored and self.live:
            logger.info("A pack of %d trials goes on after epoch %d.", len(self.live), self._progress().epoch)

    @property
    def live(self) -> list[str]:
        """Ids of the runs that are still trained here."""
        return [run_id for run_id, member in self._members.items() if member.is_live]

    @property
    def histories(self) -> dict[str, tuple[EpochRow, ...]]:
        """The epochs of every run so far, including those of an earlier attempt."""
        return {run_id: member.now.progress.history for run_id, member in self._members.items()}

    @property
    def failures(self) -> dict[str, DivergedError]:
        """The errors of the runs that failed, by run id."""
        return {run_id: member.failure for run_id, member in self._members.items() if member.failure}

    def has(self, run_id: str) -> bool:
        """Whether a run is trained here or ended here. A run that left the pack before its end is trained alone."""
        member = self._members.get(run_id)
        return member is not None and (member.is_live or member.ended)

    def next_epoch(self) -> None:
        """Train and validate all live trials for one epoch, and write a checkpoint.

        A trial whose loss is not finite is then in `failures`. Raises ConfigError if early stopping has no validation
        split to watch, AlreadyExistsError if another process trains the same pack, OutOfMemoryError.
        """
        if not self.live:
            return
        with memory_explained(f"A pack of {len(self.live)} trials", advice=for_training(self._common)):
            engine = self._engine_of_live()
            program, samples, before = engine.program, engine.samples, self._progress().global_step
            started = time.monotonic()
            steps = samples.train(program, range(self._steps), global_step=before)
            trained = program.sum_over_workers([result for _, result in steps])
            results = samples.validate(program)
            validated = program.sum_over_workers(results) if results else [None] * len(engine.members)
            seconds = time.monotonic() - started
            rates, states = program.learning_rates, states_of(engine.head, program.optimizer)
            for index, member in enumerate(engine.members):
                if member.is_live:
                    member.note_epoch(
                        trained[index],
                        validated[index],
                        states[index],
                        steps=self._steps,
                        learning_rate=rates[index],
                        seconds=seconds,
                    )
            self._leave([member for member in engine.members if member.is_live and member.ended])
            self._checkpoints.save(list(self._members.values()))
            self._tidy()

    def stop(self, run_id: str) -> None:
        """End a trial's training here. Its run can be continued alone."""
        member = self._members[run_id]
        if member.is_live:
            member.leave()
            self._tidy()

    def give_up(self) -> None:
        """End the training of all trials here, for good. Their runs can be continued alone."""
        live = [self._members[run_id] for run_id in self.live]
        if live:
            logger.warning("A pack of %d trials is given up: each trial continues alone.", len(live))
        self._leave(live)
        self._engine = None
        self._checkpoints.save(list(self._members.values()))
        self._tidy()

    def _tidy(self) -> None:
        """Remove all checkpoints but the last one if no trial is left to train."""
        if not self.live:
            keep_last(self._store, self._folder)

    def _fresh(self, runs: Sequence[Run]) -> list[PackedTrial]:
        """Trials at the start of their phase. A run that is finished already is a trial that is not live."""
        with ThreadPoolExecutor(THREADS) as pool:
            newest = list(pool.map(lambda run: Checkpoints(run).last_entry(), runs))
        members, first_weights = [], dict[int, list[np.ndarray]]()
        for run, found in zip(runs, newest, strict=True):
            seed = run.config.training.seed
            if found and found[1].progress.complete:
                members.append(PackedTrial(run, Checkpoint(found[1].progress, [], []), is_live=False))
                continue
            if seed not in first_weights:
                # All trials of a seed begin with the same weights: the seed's, or those of a published version.
                head = self._head_of(run)
                warm_start(head, run, self._dataset)
                first_weights[seed] = [np.array(variable) for variable in head.trainable_variables]
            members.append(PackedTrial(run, Checkpoint(Progress(), first_weights[seed], [])))
        return members

    def _leave(self, members: Sequence[PackedTrial]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(PackedTrial.leave, members))

    def _head_of(self, run: Run) -> keras.Model:
        return build_head(
            run.config.head,
            feature_shape=self._cached.train[0].shape,
            class_count=len(self._dataset.classes),
            seed=run.config.training.seed,
            untrained=self._untrained,
        )

    def _progress(self) -> Progress:
        """The progress of the live members, which is the same for all of them."""
        return self._members[self.live[0]].now.progress

    def _engine_of_live(self) -> _Engine:
        """The program of the live trials. It is built again, which takes as long as some epochs, if most have ended."""
        live = [member for member in self._members.values() if member.is_live]
        if self._engine is not None and 2 * len(live) >= len(self._engine.members):
            return self._engine
        # In this order trials with the same inputs are neighbours, which saves copying the inputs.
        members = sorted(live, key=lambda each: (each.run.config.training.seed, each.run.config.head.dropout))
        trials = Trials([member.run.config for member in members])
        head = build_pack_head(self._head_of(members[0].run), trials, [member.now.weights for member in members])
        phase, training = self._common.phases[0], self._common.training
        program = PhaseProgram(
            CutModel(preprocess=tf.identity, frozen=None, unfrozen=None, head=head),
            phase=phase,
            training=training,
            class_weights=class_weights(training.class_weights, self._store, self._dataset, self._fold),
            augmentation=None,
            steps_per_epoch=self._steps,
            trials=trials,
        )
        restore_optimizer(program.optimizer, [member.now.optimizer for member in members])
        samples = CachedSamples(
            self._cached.train,
            self._cached.validation,
            training=training,
            worker=WorkerSlice(),
            epochs=range(self._progress().epoch, phase.epochs),
            start_step=0,
            seeds=trials.seeds,
        )
        self._engine = _Engine(members, head, program, samples)
        return self._engine
