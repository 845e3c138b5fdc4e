"""Training as a story: phases, epochs, steps, checkpoints. It knows nothing of Ray.

The data of a phase: `feature_plan.py` decides between images and cached features, `rows.py` selects the images and
weighs the classes, `samples.py` reads them in the order of training, and `step.py` trains on them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from transfer.catalog.run import EpochRow, Progress
from transfer.config import EarlyStoppingConfig, PhaseConfig
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.errors import ConfigError, DivergedError
from transfer.runtime.memory import for_training, memory_explained
from transfer.runtime.progress import no_progress
from transfer.runtime.progress import progress as show_progress
from transfer.training.checkpoints import Checkpoint, Checkpoints, assign
from transfer.training.feature_plan import FeaturePlan
from transfer.training.heartbeat import SAVING, during
from transfer.training.history import watched, write_events
from transfer.training.model import TransferModel
from transfer.training.rows import class_weights, images_of, untrained_classes
from transfer.training.run import Run, hold_to_base
from transfer.training.samples import MAX_STEPS, CachedSamples, ImageSamples, Samples
from transfer.training.shared_models import SharedModels
from transfer.training.step import PhaseProgram, Totals
from transfer.training.warm_start import warm_start


def after_epoch(
    progress: Progress,
    phase: PhaseConfig,
    *,
    trained: Totals,
    validated: Totals | None,
    learning_rate: float,
    seconds: float,
    images_per_second: float | None = None,
    checkpoint: int,
) -> tuple[Progress, bool]:
    """The progress of a run after an epoch, with the epoch's row in its history, and whether the epoch ends the phase.

    `progress`: after the epoch's last step. `trained`, `validated`: sums over all images of the epoch. `checkpoint`:
    number of the checkpoint that will be written. Raises DivergedError if a loss is not finite, ConfigError if early
    stopping has no validation split to watch.
    """
    trained, validated = checked(trained, progress), validated and checked(validated, progress)
    row = EpochRow(
        phase=progress.phase,
        epoch=len(progress.history),
        loss=trained.mean_loss,
        accuracy=trained.accuracy,
        validation_loss=validated.mean_loss if validated else None,
        validation_accuracy=validated.accuracy if validated else None,
        learning_rate=learning_rate,
        seconds=seconds,
        images_per_second=images_per_second,
    )
    progress = progress.model_copy(
        update={
            "epoch": progress.epoch + 1,
            "step": 0,
            "sums": (0.0, 0.0, 0.0),
            "history": (*progress.history, row),
        }
    )
    ended = progress.epoch == phase.epochs
    if phase.early_stopping:
        progress = _watch(phase.early_stopping, progress, row, checkpoint=checkpoint)
        ended = ended or progress.epochs_since_best >= phase.early_stopping.patience_epochs
    return progress, ended


def after_phase(progress: Progress, *, phases: int) -> Progress:
    """The progress at the start of the next phase, or at the end of the run. `phases`: number of the run's phases."""
    return Progress(
        phase=progress.phase + 1,
        global_step=progress.global_step,
        history=progress.history,
        complete=progress.phase + 1 == phases,
    )


def checked(totals: Totals, progress: Progress) -> Totals:
    """Return `totals`, which are of the epoch up to `progress`. Raises DivergedError if the loss is not finite."""
    if math.isfinite(totals.loss):
        return totals
    raise DivergedError(
        f"The loss became {totals.loss} in phase {progress.phase}, epoch {progress.epoch + 1}, at or before "
        f"step {progress.step}.",
        advice="Lower the phase's learning_rate, or set optimizer.clip_norm. Earlier checkpoints are kept.",
    )


def _watch(rule: EarlyStoppingConfig, progress: Progress, row: EpochRow, *, checkpoint: int) -> Progress:
    """The progress with a note whether this epoch is the best of its phase so far."""
    score = watched(rule, row)
    if score is None:
        raise ConfigError(
            "early_stopping needs a validation split, and the dataset has none.",
            advice="Set dataset.validation above 0 or remove early_stopping.",
        )
    if progress.best_score is None or score > progress.best_score + rule.min_delta:
        return progress.model_copy(update={"best_score": score, "best_checkpoint": checkpoint, "epochs_since_best": 0})
    return progress.model_copy(update={"epochs_since_best": progress.epochs_since_best + 1})


def train(
    run: Run,
    dataset: Dataset,
    *,
    shared: SharedModels,
    worker: WorkerSlice | None = None,
    start: Checkpoint | None = None,
    on_epoch: Callable[[EpochRow], None] = lambda _: None,
) -> TransferModel:
    """Train a run to its end on shared models, from `start` or from the beginning, and return the trained model.

    Every worker of a group calls this, with its own `worker` and otherwise the same arguments. All workers call
    `on_epoch` after each epoch. Raises what `Training` raises.
    """
    training = Training(run, dataset, shared=shared, worker=worker, start=start)
    while not training.complete:
        on_epoch(training.next_epoch())
    return training.model


class Training:
    """The training of a run, one epoch at a time.

    Several trainings can take turns on the same shared models: the turn is taken at the start of an epoch.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        *,
        shared: SharedModels,
        worker: WorkerSlice | None = None,
        start: Checkpoint | None = None,
        extract_ahead: bool = True,
        shows_progress: bool = True,
        keeps: bool = True,
    ) -> None:
        """Prepare to continue from `start`, or to begin.

        `extract_ahead`: compute the features to cache for all phases now, in one pass over the images; otherwise each
        phase computes its features when it begins. `shows_progress`: the chief shows progress within an epoch. `keeps`:
        validate after each epoch, and write the run to storage; otherwise neither is done.

        Raises BackboneError if the base cannot be loaded, BaseChangedError if it is not the base that the run began
        with, ConfigError if the batch cannot be divided among the replicas, OutOfMemoryError, and what `warm_start`
        raises.
        """
        replicas, batch_size = shared.strategy.num_replicas_in_sync, run.config.training.batch_size
        if batch_size % replicas:
            # Validation of the configuration does not know how many GPUs this process finds.
            raise ConfigError(
                f"training.batch_size is {batch_size} and must be divisible by the {replicas} replicas found here.",
                advice="Change training.batch_size, or hide GPUs with CUDA_VISIBLE_DEVICES.",
            )
        self.run = run
        self.config = run.config
        self.dataset = dataset
        self.worker = worker or WorkerSlice()
        self.is_chief = self.worker.index == 0
        self.shared = shared
        self._shows_progress = shows_progress and self.is_chief
        self._keeps = keeps
        self.checkpoints = Checkpoints(run)
        # All workers count the number instead of looking it up at each save:
        # only the chief knows what it has just written.
        self.next_checkpoint = run.checkpoints.newest_number() + 1
        self._images, self._validated_images = images_of(run.store, dataset, run.fold)
        self.steps = steps_per_epoch(self._images, batch_size)
        self.progress = start.progress if start else Progress()
        self.weights: list[keras.Variable] = []
        self._suspended = start
        self._program: PhaseProgram | None = None
        self._samples: Samples | None = None
        with self._memory_explained(), shared.strategy.scope():
            shared.take_turn(self)
            untrained = untrained_classes(run.store, dataset, run.fold)
            self.model = shared.model(run.config, run.store, dataset, untrained=untrained)
            if keeps:
                hold_to_base(run, self.model.digest)
            if start is None:
                warm_start(self.model.head, run, dataset)
            self.weights = self.model.variables_of(self.config.phases)
            shared.will_train(self.model, self.config.phases)
            self.inputs = FeaturePlan(run, dataset, self.model)
            # Phases whose features this process still has to compute. For a group of workers the driver computed them
            # before: here each worker would compute all of them.
            self._to_extract = range(len(self.config.phases)) if self.worker.count == 1 else range(0)
            if self._to_extract and extract_ahead:
                self.inputs.extract()
                self._to_extract = range(0)
            self._resume()

    @property
    def complete(self) -> bool:
        """Whether there is no epoch left."""
        return self.progress.complete

    def next_epoch(self) -> EpochRow:
        """Train the rest of the present epoch, validate, and write a checkpoint.

        Raises DivergedError if the loss is not finite, OutOfMemoryError if a step does not fit.
        """
        with self._memory_explained(), self.shared.strategy.scope():
            self.take_turn()
            first_step = self.progress.step
            program = self._program = self._program or self.program()
            samples = self._samples = self._samples or self.samples()
            started = time.monotonic()
            trained, progress = self._train_epoch(program, samples, self.progress)
            trained_s = time.monotonic() - started
            validated = None
            if self._validated_images and self._keeps:
                (validated,) = program.sum_over_workers(samples.validate(program))
            progress, ended = after_epoch(
                progress,
                self.config.phases[progress.phase],
                trained=trained,
                validated=validated,
                learning_rate=program.learning_rates[0],
                seconds=time.monotonic() - started,
                images_per_second=(self._images - first_step * self.config.training.batch_size) / max(trained_s, 1e-9),
                checkpoint=self.next_checkpoint,
            )
            if ended:
                if progress.best_checkpoint not in (None, self.next_checkpoint):
                    self.checkpoints.check_newest(self.next_checkpoint)
                    assign(self.weights, self.checkpoints.read(progress.best_checkpoint).weights)
                self.model.merge([progress.phase])
                progress = after_phase(progress, phases=len(self.config.phases))
            self._save(program, progress)
            row = progress.history[-1]
            if self.is_chief and self._keeps:
                write_events(self.run, row)
            self.progress = progress
            if ended:
                self._program, self._samples = None, None
            return row

    def take_turn(self) -> None:
        """Put this run's weights into the shared variables. Must be called within the strategy's scope."""
        if self.shared.take_turn(self):
            self._resume()

    def suspend(self) -> None:
        """Copy weights and optimiser out of the shared variables; `take_turn` puts them back."""
        self._suspended = Checkpoint(
            number=self.next_checkpoint - 1,
            progress=self.progress,
            weights=[np.array(variable) for variable in self.weights],
            optimizer=[np.array(variable) for variable in self._program.optimizer.variables] if self._program else [],
        )

    def _memory_explained(self) -> AbstractContextManager[None]:
        place = f"phase {self.progress.phase}" if not self.complete else "its end"
        return memory_explained(f"Run {self.run.id} at {place}", advice=for_training(self.config))

    def _resume(self) -> None:
        suspended, self._suspended = self._suspended, None
        self._program = None if self.complete else self.program()
        if suspended is None:
            return
        assign(self.weights, suspended.weights)
        self.model.merge(range(self.progress.phase), but=self.weights)
        if suspended.optimizer and self._program:
            assign(self._program.optimizer.variables, suspended.optimizer)

    def program(self) -> PhaseProgram:
        """The program of the present phase, with a fresh optimiser. Must be called in this run's turn."""
        run, phase = self.run, self.progress.phase
        weights = class_weights(self.config.training.class_weights, run.store, self.dataset, run.fold)
        return self.shared.program(self.model, phase, self.config, class_weights=weights, steps_per_epoch=self.steps)

    def _train_epoch(self, program: PhaseProgram, samples: Samples, progress: Progress) -> tuple[Totals, Progress]:
        """Train the rest of an epoch. Returns the totals of the whole epoch."""
        training, phase = self.config.training, self.config.phases[progress.phase]
        title = f"phase {progress.phase} ({phase.title}), epoch {progress.epoch + 1}/{phase.epochs}"
        totals = Totals(*progress.sums)
        shown = show_progress(title, total=self._images, stays=False) if self._shows_progress else no_progress()
        with shown as advance:
            while progress.step < self.steps:
                first = done = progress.step
                # Train until the loss is checked next, a checkpoint is due, or the epoch ends.
                due = [(first // every + 1) * every for every in (MAX_STEPS, training.checkpoint_steps) if every]
                stop, results = min(self.steps, *due), list[tf.Tensor]()
                for taken, result in samples.train(program, range(first, stop), global_step=progress.global_step):
                    results.append(result)
                    advance(min((done + taken) * training.batch_size, self._images) - done * training.batch_size)
                    done += taken
                global_step = progress.global_step + stop - first
                progress = progress.model_copy(update={"step": stop, "global_step": global_step})
                (of_results,) = program.sum_over_workers(results)
                totals = checked(totals + of_results, progress)
                if training.checkpoint_steps and stop % training.checkpoint_steps == 0 and stop < self.steps:
                    sums = (totals.loss, totals.correct, totals.images)
                    self._save(program, progress.model_copy(update={"sums": sums}))
        return totals, progress

    def _save(self, program: PhaseProgram, progress: Progress) -> None:
        # A phase starts with a fresh optimiser, so a checkpoint between phases stores none.
        between_phases = progress.epoch == 0 and progress.step == 0
        optimizer = [] if between_phases else program.optimizer.variables
        if self.is_chief and self._keeps:
            with during(SAVING):
                self.checkpoints.save(self.next_checkpoint, progress, weights=self.weights, optimizer=optimizer)
        self.next_checkpoint += 1

    def samples(self, *, epochs: int | None = None, max_steps: int = MAX_STEPS) -> Samples:
        """The samples for the rest of the present phase, or for `epochs`, at most `max_steps` steps in one call."""
        progress, phase = self.progress, self.config.phases[self.progress.phase]
        if progress.phase in self._to_extract:
            self.inputs.extract([progress.phase])
        epoch = len(progress.history)
        rest: dict[str, Any] = {
            "training": self.config.training,
            "worker": self.worker,
            "epochs": range(epoch, epoch + (epochs or phase.epochs - progress.epoch)),
            "start_step": progress.step,
        }
        cached = self.inputs.open(progress.phase)
        if cached is not None:
            return CachedSamples(cached.train, cached.validation, **rest, max_steps=max_steps)
        image_input = self.model.backbone.image_input
        replicas = self.shared.strategy.num_replicas_in_sync
        return ImageSamples(self.run.store, self.dataset, image_input=image_input, replicas=replicas, **rest)
