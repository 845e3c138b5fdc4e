"""Training as a story: phases, epochs, steps, checkpoints. It knows nothing of Ray."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np

from transfer.config import PhaseConfig
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.errors import ConfigError
from transfer.memory import for_training, memory_explained
from transfer.progress import progress as show_progress
from transfer.training.balance import class_weights
from transfer.training.checkpoints import Checkpoint, Checkpoints, Progress, assign
from transfer.training.epochs import after_epoch, after_phase, checked
from transfer.training.folds import images_of
from transfer.training.history import EpochRow
from transfer.training.inputs import Inputs
from transfer.training.model import TransferModel
from transfer.training.pinned_base import hold_to_base
from transfer.training.pulse import SAVING, during
from transfer.training.run import Run
from transfer.training.samples import MAX_STEPS, ImageSamples, KeptSamples, Samples
from transfer.training.step import PhaseProgram, Totals
from transfer.training.tensorboard import write_events
from transfer.training.warm_start import warm_start
from transfer.training.workbench import Workbench

logger = logging.getLogger(__name__)


def train(
    run: Run,
    dataset: Dataset,
    *,
    workbench: Workbench,
    worker: WorkerSlice | None = None,
    start: Checkpoint | None = None,
    on_epoch: Callable[[EpochRow], None] = lambda _: None,
) -> TransferModel:
    """Train a run to its end on a workbench, from `start` or from the beginning, and return the trained model.

    Every worker of a group calls this with the same arguments but `worker`. `on_epoch` is called by all of them after
    each epoch. Raises what `Training` raises.
    """
    training = Training(run, dataset, workbench=workbench, worker=worker, start=start)
    while not training.complete:
        on_epoch(training.next_epoch())
    return training.model


class Training:
    """A run that is being trained, an epoch at a time.

    Several of them can train on one workbench; whose epoch comes next has its turn.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        *,
        workbench: Workbench,
        worker: WorkerSlice | None = None,
        start: Checkpoint | None = None,
        sharing: int = 1,
        extract_ahead: bool = True,
    ) -> None:
        """Get ready to go on from `start`, or to begin. The frozen part's output is computed, where it is to be kept.

        `sharing`: runs that will train on the same frozen part. `extract_ahead`: for all phases in one pass over the
        images; else for each phase when it begins, which it may never do.

        Raises BackboneError when the base cannot be loaded, BaseChangedError when it is not the one that the run began
        with, ConfigError when the batch cannot be divided among the replicas, OutOfMemoryError, and what `warm_start`
        raises.
        """
        replicas, batch_size = workbench.strategy.num_replicas_in_sync, run.config.training.batch_size
        if batch_size % replicas:
            # The configuration's own check cannot see how many GPUs this process finds.
            raise ConfigError(
                f"training.batch_size is {batch_size} and must be divisible by the {replicas} replicas found here.",
                advice="Change it, or hide GPUs with CUDA_VISIBLE_DEVICES.",
            )
        self.run = run
        self.config = run.config
        self.dataset = dataset
        self.worker = worker or WorkerSlice()
        self.is_chief = self.worker.index == 0
        self.workbench = workbench
        self._extract_ahead = extract_ahead
        self.checkpoints = Checkpoints(run)
        # Counted, not looked up at each save: all workers must agree on it, and only the chief has just written.
        self.next_checkpoint = (self.checkpoints.numbers() or [0])[-1] + 1
        self._images, self._validated_images = images_of(dataset, run.fold)
        self.steps = steps_per_epoch(self._images, batch_size)
        self.progress = start.progress if start else Progress()
        self.weights: list[keras.Variable] = []
        self._suspended = start
        self._program: PhaseProgram | None = None
        self._samples: Samples | None = None
        with self._memory_explained(), workbench.strategy.scope():
            workbench.take_turn(self)
            self.model = workbench.model(run.config, dataset.classes)
            hold_to_base(run, self.model.digest)
            if start is None:
                warm_start(self.model.head, run, dataset)
            self.weights = self.model.variables_of([phase.unfreeze for phase in self.config.phases])
            workbench.will_train(self.model, self.weights)
            self.inputs = Inputs(run, dataset, self.model, sharing=sharing)
            # A group's driver has seen to it before the group started: here each worker would do all of it.
            self._extracts = self.worker.count == 1
            if self._extracts and extract_ahead:
                self.inputs.extract()
            self._resume()
        if start is not None:
            logger.info(
                "Run %s goes on at phase %d, epoch %d.", run.id, self.progress.phase + 1, self.progress.epoch + 1
            )

    @property
    def complete(self) -> bool:
        """Whether there is no epoch left."""
        return self.progress.complete

    def next_epoch(self) -> EpochRow:
        """Train the rest of the present epoch, validate, and write a checkpoint.

        Raises DivergedError when the loss is not finite, OutOfMemoryError when a step does not fit.
        """
        with self._memory_explained(), self.workbench.strategy.scope():
            self.take_turn()
            return self._next_epoch()

    def take_turn(self) -> None:
        """Have the workbench's variables hold this run's weights. To be called within the strategy's scope."""
        if self.workbench.take_turn(self):
            self._resume()

    def suspend(self) -> None:
        """Copy weights and optimiser out of the workbench's variables; the next epoch brings them back."""
        self._suspended = Checkpoint(
            number=self.next_checkpoint - 1,
            progress=self.progress,
            weights=[np.array(variable) for variable in self.weights],
            optimizer=[np.array(variable) for variable in self._program.optimizer.variables] if self._program else [],
        )

    def _memory_explained(self) -> AbstractContextManager[None]:
        place = f"phase {self.progress.phase + 1}" if not self.complete else "its end"
        return memory_explained(f"Run {self.run.id} at {place}", advice=for_training(self.config))

    def _resume(self) -> None:
        suspended, self._suspended = self._suspended, None
        self._program = None if self.complete else self._program_of(self.config.phases[self.progress.phase])
        if suspended is None:
            return
        assign(self.weights, suspended.weights)
        if suspended.optimizer and self._program:
            assign(self._program.optimizer.variables, suspended.optimizer)

    def _program_of(self, phase: PhaseConfig) -> PhaseProgram:
        weights = class_weights(self.config.training.class_weights, self.dataset)
        return self.workbench.program(self.model, phase, self.config, class_weights=weights, steps_per_epoch=self.steps)

    def _next_epoch(self) -> EpochRow:
        progress = self.progress
        phase = self.config.phases[progress.phase]
        program = self._program = self._program or self._program_of(phase)
        samples = self._samples = self._samples or self._samples_of(progress)
        started = time.monotonic()
        totals, progress = self._epoch(program, samples, progress)
        validated = self._validate(program, samples, progress)
        row = EpochRow(
            phase=progress.phase,
            epoch=len(progress.history),
            loss=totals.mean_loss,
            accuracy=totals.accuracy,
            validation_loss=validated.mean_loss if validated else None,
            validation_accuracy=validated.accuracy if validated else None,
            learning_rate=float(keras.ops.convert_to_numpy(program.optimizer.learning_rate)),
            seconds=time.monotonic() - started,
        )
        self.progress = self._finish_epoch(program, phase, progress, row)
        if self.progress.phase != progress.phase:
            self._program, self._samples = None, None
        return row

    def _epoch(self, program: PhaseProgram, samples: Samples, progress: Progress) -> tuple[Totals, Progress]:
        """Train the rest of an epoch. Returns its totals from its first step on."""
        training = self.config.training
        before, results = Totals(*progress.sums), []
        title = f"phase {progress.phase + 1}, epoch {progress.epoch + 1}"
        with show_progress(title, total=self._images) if self.is_chief else _silent() as advance:
            while progress.step < self.steps:
                step = progress.step
                stop = min(_next_due(step, training.checkpoint_steps), _next_due(step, MAX_STEPS), self.steps)
                taken, result = samples.train(
                    program, step=step, global_step=progress.global_step, limit=int(stop) - step
                )
                results.append(result)
                step += taken
                progress = progress.model_copy(update={"step": step, "global_step": progress.global_step + taken})
                advance(min(step * training.batch_size, self._images) - (step - taken) * training.batch_size)
                due = _is_due(step, training.checkpoint_steps) and step < self.steps
                if due or _is_due(step, MAX_STEPS):
                    before, results = checked(before + program.sum_over_workers(results), progress), []
                if due:
                    sums = (before.loss, before.correct, before.images)
                    self._save(program, progress.model_copy(update={"sums": sums}))
        return checked(before + program.sum_over_workers(results), progress), progress

    def _validate(self, program: PhaseProgram, samples: Samples, progress: Progress) -> Totals | None:
        if not self._validated_images:
            return None
        return checked(program.sum_over_workers(samples.validate(program)), progress)

    def _finish_epoch(self, program: PhaseProgram, phase: PhaseConfig, progress: Progress, row: EpochRow) -> Progress:
        """Move on to the next epoch or phase, and write the checkpoint that says so."""
        progress, ended = after_epoch(progress, row, phase, checkpoint=self.next_checkpoint)
        if ended:
            if progress.best_checkpoint not in (None, self.next_checkpoint):
                logger.info("Going back to the phase's best epoch.")
                assign(self.weights, self.checkpoints.read(progress.best_checkpoint).weights)
            progress = after_phase(progress, phases=len(self.config.phases))
        self._save(program, progress)
        if self.is_chief:
            write_events(self.run, row)
        return progress

    def _save(self, program: PhaseProgram, progress: Progress) -> None:
        # A phase starts with a fresh optimiser, so between phases there is none to keep.
        between_phases = progress.epoch == 0 and progress.step == 0
        optimizer = [] if between_phases else program.optimizer.variables
        if self.is_chief:
            with during(SAVING):
                self.checkpoints.save(self.next_checkpoint, progress, weights=self.weights, optimizer=optimizer)
        self.next_checkpoint += 1

    def _samples_of(self, progress: Progress) -> Samples:
        """What the rest of the present phase trains on."""
        phase = self.config.phases[progress.phase]
        if self._extracts and not self._extract_ahead:
            self.inputs.extract([progress.phase])
        epoch = len(progress.history)
        rest: dict[str, Any] = {
            "training": self.config.training,
            "worker": self.worker,
            "epochs": range(epoch, epoch + phase.epochs - progress.epoch),
            "start_step": progress.step,
        }
        kept = self.inputs.open(progress.phase)
        if kept is not None:
            return KeptSamples(kept.train, kept.validation, **rest)
        image_size = self.model.backbone.image_size
        replicas = self.workbench.strategy.num_replicas_in_sync
        return ImageSamples(self.run.store, self.dataset, image_size=image_size, replicas=replicas, **rest)


def _is_due(step: int, every: int | None) -> bool:
    """The one rule for "is it time?"."""
    return every is not None and step % every == 0


def _next_due(step: int, every: int | None) -> float:
    """The first step after `step` at which it is."""
    return math.inf if every is None else (step // every + 1) * every


@contextmanager
def _silent() -> Iterator[Callable[[int], None]]:
    """Progress of workers other than the chief: it would be the same line again."""
    yield lambda _count: None
