"""Training as a story: phases, epochs, steps, checkpoints. It knows nothing of Ray."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation.layers import Augmentation
from transfer.backbone.precision import set_precision
from transfer.config import EarlyStoppingConfig, PhaseConfig
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.errors import ConfigError, DivergedError
from transfer.progress import progress as show_progress
from transfer.training.checkpoints import Checkpoint, Checkpoints, Progress, assign
from transfer.training.history import EpochRow
from transfer.training.inputs import Inputs
from transfer.training.model import TransferModel, build_model
from transfer.training.run import Run
from transfer.training.samples import MAX_STEPS, ImageSamples, KeptSamples, Samples
from transfer.training.step import PhaseProgram, Totals, balanced_class_weights
from transfer.training.tensorboard import write_events

logger = logging.getLogger(__name__)


def train(
    run: Run,
    dataset: Dataset,
    *,
    strategy: tf.distribute.Strategy,
    worker: WorkerSlice | None = None,
    start: Checkpoint | None = None,
    on_epoch: Callable[[EpochRow], None] = lambda _: None,
) -> TransferModel:
    """Train a run to its end, from `start` or from the beginning, and return the trained model.

    Every worker of a group calls this with the same arguments but `worker`. `on_epoch` is called by all of them after
    each epoch. Raises DivergedError when the loss is not finite, BackboneError when the base cannot be loaded,
    ConfigError when the batch cannot be divided among the replicas.
    """
    replicas, batch_size = strategy.num_replicas_in_sync, run.config.training.batch_size
    if batch_size % replicas:
        # The configuration's own check cannot see how many GPUs this process finds.
        raise ConfigError(
            f"training.batch_size is {batch_size} and must be divisible by the {replicas} replicas found here.",
            advice="Change it, or hide GPUs with CUDA_VISIBLE_DEVICES.",
        )
    with strategy.scope():
        set_precision(run.config.training.mixed_precision)
        model = build_model(run.config, dataset.classes)
        inputs = Inputs(run, dataset, model)
        worker = worker or WorkerSlice()
        if worker.count == 1:
            # A group's driver has seen to it before the group started: here each of its workers would do all of it.
            inputs.extract()
        _Trainer(run, dataset, model, inputs, worker, on_epoch).run_from(start)
    return model


class _Trainer:
    """What stays the same over the phases of a run."""

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        model: TransferModel,
        inputs: Inputs,
        worker: WorkerSlice,
        on_epoch: Callable[[EpochRow], None],
    ) -> None:
        self.run = run
        self.config = run.config
        self.dataset = dataset
        self.model = model
        self.inputs = inputs
        self.worker = worker
        self.is_chief = worker.index == 0
        self.on_epoch = on_epoch
        self.checkpoints = Checkpoints(run)
        # Counted, not looked up at each save: all workers must agree on it, and only the chief has just written.
        self.next_checkpoint = (self.checkpoints.numbers() or [0])[-1] + 1
        self.weights = model.variables_of([phase.unfreeze for phase in self.config.phases])
        self.steps = steps_per_epoch(dataset.rows("train"), self.config.training.batch_size)

    def run_from(self, start: Checkpoint | None) -> None:
        progress = Progress()
        if start is not None:
            assign(self.weights, start.weights)
            progress = start.progress
            logger.info("Run %s goes on at phase %d, epoch %d.", self.run.id, progress.phase + 1, progress.epoch + 1)
        while not progress.complete:
            program = self._program(self.config.phases[progress.phase])
            if start is not None and start.optimizer:
                assign(program.optimizer.variables, start.optimizer)
            start = None
            progress = self._phase(program, progress)

    def _program(self, phase: PhaseConfig) -> PhaseProgram:
        augment = phase.augment and self.config.augmentation.is_active
        return PhaseProgram(
            self.model.split(phase.unfreeze),
            phase=phase,
            training=self.config.training,
            class_weights=class_weights(self.config.training.class_weights, self.dataset),
            augmentation=Augmentation(self.config.augmentation) if augment else None,
            steps_per_epoch=self.steps,
        )

    def _phase(self, program: PhaseProgram, progress: Progress) -> Progress:
        """Train one phase to its end; the progress returned stands at the start of the next."""
        index = progress.phase
        phase = self.config.phases[index]
        samples = self._samples(progress, replicas=program.strategy.num_replicas_in_sync)
        while progress.phase == index and not progress.complete:
            started = time.monotonic()
            totals, progress = self._epoch(program, samples, progress)
            validated = self._validate(program, samples, progress)
            row = EpochRow(
                phase=index,
                epoch=len(progress.history),
                loss=totals.mean_loss,
                accuracy=totals.accuracy,
                validation_loss=validated.mean_loss if validated else None,
                validation_accuracy=validated.accuracy if validated else None,
                learning_rate=float(keras.ops.convert_to_numpy(program.optimizer.learning_rate)),
                seconds=time.monotonic() - started,
            )
            progress = self._finish_epoch(program, phase, progress, row)
            self.on_epoch(row)
        return progress

    def _epoch(self, program: PhaseProgram, samples: Samples, progress: Progress) -> tuple[Totals, Progress]:
        """Train the rest of an epoch. Returns its totals from its first step on."""
        training = self.config.training
        rows = self.dataset.rows("train")
        before, results = Totals(*progress.sums), []
        title = f"phase {progress.phase + 1}, epoch {progress.epoch + 1}"
        with show_progress(title, total=rows) if self.is_chief else _silent() as advance:
            while progress.step < self.steps:
                step = progress.step
                stop = min(_next_due(step, training.checkpoint_steps), _next_due(step, MAX_STEPS), self.steps)
                taken, result = samples.train(
                    program, step=step, global_step=progress.global_step, limit=int(stop) - step
                )
                results.append(result)
                step += taken
                progress = progress.model_copy(update={"step": step, "global_step": progress.global_step + taken})
                advance(min(step * training.batch_size, rows) - (step - taken) * training.batch_size)
                due = _is_due(step, training.checkpoint_steps) and step < self.steps
                if due or _is_due(step, MAX_STEPS):
                    before, results = self._checked(before + program.sum_over_workers(results), progress), []
                if due:
                    sums = (before.loss, before.correct, before.images)
                    self._save(program, progress.model_copy(update={"sums": sums}))
        return self._checked(before + program.sum_over_workers(results), progress), progress

    def _validate(self, program: PhaseProgram, samples: Samples, progress: Progress) -> Totals | None:
        if not self.dataset.rows("validation"):
            return None
        return self._checked(program.sum_over_workers(samples.validate(program)), progress)

    def _finish_epoch(self, program: PhaseProgram, phase: PhaseConfig, progress: Progress, row: EpochRow) -> Progress:
        """Move on to the next epoch or phase, and write the checkpoint that says so."""
        progress = progress.model_copy(
            update={
                "epoch": progress.epoch + 1,
                "step": 0,
                "sums": (0.0, 0.0, 0.0),
                "history": (*progress.history, row),
            }
        )
        stop = progress.epoch == phase.epochs
        if phase.early_stopping:
            progress = _watch(phase.early_stopping, progress, row, checkpoint=self.next_checkpoint)
            stop = stop or progress.epochs_since_best >= phase.early_stopping.patience_epochs
        if stop:
            if progress.best_checkpoint not in (None, self.next_checkpoint):
                logger.info("Going back to the phase's best epoch.")
                assign(self.weights, self.checkpoints.read(progress.best_checkpoint).weights)
            progress = Progress(
                phase=progress.phase + 1,
                global_step=progress.global_step,
                history=progress.history,
                complete=progress.phase + 1 == len(self.config.phases),
            )
        self._save(program, progress)
        if self.is_chief:
            write_events(self.run, row)
        return progress

    def _save(self, program: PhaseProgram, progress: Progress) -> None:
        # A phase starts with a fresh optimiser, so between phases there is none to keep.
        between_phases = progress.epoch == 0 and progress.step == 0
        optimizer = [] if between_phases else program.optimizer.variables
        if self.is_chief:
            self.checkpoints.save(self.next_checkpoint, progress, weights=self.weights, optimizer=optimizer)
        self.next_checkpoint += 1

    def _samples(self, progress: Progress, *, replicas: int) -> Samples:
        """What the rest of the present phase trains on."""
        phase = self.config.phases[progress.phase]
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
        return ImageSamples(self.run.store, self.dataset, image_size=image_size, replicas=replicas, **rest)

    def _checked(self, totals: Totals, progress: Progress) -> Totals:
        if math.isfinite(totals.loss):
            return totals
        raise DivergedError(
            f"The loss became {totals.loss} in phase {progress.phase + 1}, epoch {progress.epoch + 1}, at or before "
            f"step {progress.step}.",
            advice="Lower the phase's learning_rate, or set optimizer.clip_norm. Checkpoints before it are kept.",
        )


def class_weights(setting: Literal["none", "balanced"] | dict[str, float], dataset: Dataset) -> np.ndarray:
    """Weight of each class in the loss, float32 [classes]. Raises ConfigError for a name that is no class."""
    counts = dataset.counts["train"]
    if setting == "none":
        return np.ones(len(dataset.classes), np.float32)
    if setting == "balanced":
        return balanced_class_weights(np.array([counts.get(name, 0) for name in dataset.classes]))
    unknown = sorted(set(setting) - set(dataset.classes))
    if unknown:
        raise ConfigError(
            f"training.class_weights names {unknown}, which are no classes of {dataset.reference}.",
            advice=f"The classes are: {', '.join(dataset.classes[:20])}.",
        )
    return np.array([setting.get(name, 1.0) for name in dataset.classes], np.float32)


def _watch(rule: EarlyStoppingConfig, progress: Progress, row: EpochRow, *, checkpoint: int) -> Progress:
    """Note whether this epoch is the phase's best so far. `checkpoint` is the one about to be written."""
    value = row.validation_loss if rule.metric == "loss" else row.validation_accuracy
    if value is None:
        raise ConfigError(
            "early_stopping needs a validation split, and the dataset has none.",
            advice="Set dataset.validation above 0 or remove early_stopping.",
        )
    score = -value if rule.metric == "loss" else value
    if progress.best_score is None or score > progress.best_score + rule.min_delta:
        return progress.model_copy(update={"best_score": score, "best_checkpoint": checkpoint, "epochs_since_best": 0})
    return progress.model_copy(update={"epochs_since_best": progress.epochs_since_best + 1})


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
