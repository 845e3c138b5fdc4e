"""The training step across replicas and workers, of one trial or of a pack.

Keras 3's own `fit` fails under MultiWorkerMirroredStrategy (keras-team/keras#20585), so the step is ours. Each replica
computes gradients of its rows of the global batch, and all replicas apply the sum of the gradients. The loss is the
mean over the real rows of the *global* batch, and so are the statistics of BatchNorms that are trained
(`backbone/batch_norms.py`). So the division of a batch among replicas changes nothing but rounding.

In a pack, all tensors have a leading axis for the trials, and sums are taken for each trial. The losses of the trials
are added up, which keeps them separate: only a trial's own loss depends on its weights.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation import Augmentation, StepRandomness, step_randomness
from transfer.backbone.batch_norms import BatchStatistics
from transfer.config import PhaseConfig, TrainingConfig
from transfer.training.heartbeat import TOGETHER, during
from transfer.training.history import SMALLEST_PROBABILITY
from transfer.training.model import CutModel, untrained_in
from transfer.training.optimizer import build_optimizer
from transfer.training.pack_head import Trials

Collectives = Literal["auto", "ring", "nccl"]


@functools.cache
def create_strategy(collectives: Collectives = "auto") -> tf.distribute.Strategy:
    """The strategy of this process: over all workers in TF_CONFIG, else over the GPUs, else the default one.

    The first call must come before any other TensorFlow operation, because a multi-worker strategy sets the runtime up.
    A process has one strategy: the collectives of a second MirroredStrategy would have the same numbers as the first's.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Needed if TensorFlow was not imported by `import_tensorflow`. Setting it again is allowed at any time.
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    if len(cluster.get("worker", [])) > 1:
        implementation = tf.distribute.experimental.CommunicationImplementation[collectives.upper()]
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


Batch = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Chunk:
    """One worker's part of consecutive batches of an epoch. Only the first `steps` batches hold data.

    `features`: [capacity, rows, *shape]. `labels`: int32 [capacity, rows]. `real`: float32 [capacity, rows], 0 for a
    row that only fills an epoch's last batch. `positions`: int32 [rows], each row's place in the global batch.
    `real_images`: float32 [capacity], number of images of the dataset in each global batch. All chunks of an epoch have
    the same capacity, so that one compiled program takes them all.
    """

    features: np.ndarray
    labels: np.ndarray
    real: np.ndarray
    positions: np.ndarray
    real_images: np.ndarray
    steps: int


@dataclass(frozen=True)
class Totals:
    """Sums over images, which give exact means."""

    loss: float = 0.0
    correct: float = 0.0
    images: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.loss + other.loss, self.correct + other.correct, self.images + other.images)

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy of an image."""
        return self.loss / self.images if self.images else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is their label, 0 to 1."""
        return self.correct / self.images if self.images else float("nan")


class PhaseProgram:
    """The compiled training and evaluation steps of one phase. Must be created within the strategy's scope."""

    def __init__(
        self,
        cut: CutModel,
        *,
        phase: PhaseConfig,
        training: TrainingConfig,
        class_weights: np.ndarray,
        augmentation: Augmentation | None,
        steps_per_epoch: int,
        trials: Trials | None = None,
    ) -> None:
        """`class_weights`: float32 [classes]. `trials`: for a pack, whose chunks are `side_by_side`."""
        self.strategy = tf.distribute.get_strategy()
        # Variables, so that the compiled steps can be used for other learning rates and folds.
        peak = trials.learning_rates if trials else phase.learning_rate
        self._learning_rate = tf.Variable(peak, trainable=False, dtype=tf.float32)
        self._class_weights = tf.Variable(class_weights, trainable=False, dtype=tf.float32)
        self._seeds = trials.seeds if trials else training.seed
        self._trials = trials
        self.optimizer = build_optimizer(
            phase,
            learning_rate=self._learning_rate,
            weight_decay=trials.weight_decays if trials else None,
            steps_per_epoch=steps_per_epoch,
            loss_scaling=training.mixed_precision == "float16",
        )
        self.optimizer.build(cut.variables)
        self._fresh_optimizer = [np.array(variable) for variable in self.optimizer.variables]
        self._cut = cut
        self._untrained = untrained_in(cut.head)
        self._variables = [variable.value for variable in cut.variables]
        self._training = training
        self._label_smoothing = trials.label_smoothings if trials else training.label_smoothing
        self._clip_norm = phase.optimizer.clip_norm
        self._augmentation = augmentation
        # Without autograph, which nothing here needs: it would rewrite the source of all functions first.
        compiled = partial(tf.function, autograph=False)
        self._train_step = compiled(lambda batch, *at: self.strategy.run(self._train_replica, (batch, *at)))
        self._evaluate_step = compiled(lambda batch: self.strategy.run(self._evaluate_replica, (batch,)))
        self._train_steps = compiled(self._train_chunk)
        self._evaluate_steps = compiled(self._evaluate_chunk)

    def start(self, *, learning_rate: float, class_weights: np.ndarray, seed: int) -> None:
        """Prepare for a phase's first step: set peak learning rate, class weights and seed, and reset the optimiser."""
        self.set_learning_rate(learning_rate)
        self._class_weights.assign(class_weights)
        self._seeds = seed
        for variable, value in zip(self.optimizer.variables, self._fresh_optimizer, strict=True):
            variable.assign(value)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the peak of the phase's schedule, from the next step on."""
        self._learning_rate.assign(learning_rate)

    @property
    def learning_rates(self) -> list[float]:
        """Learning rate of the next step, one for each trial."""
        rates = keras.ops.convert_to_numpy(self.optimizer.learning_rate)
        return [float(rate) for rate in rates.reshape(-1)]

    def train_step(self, batch: Iterator[Batch], *, real_images: int, global_step: int) -> tf.Tensor:
        """Train on one global batch. `batch` yields its parts for the replicas of this worker.

        `real_images`: number of rows of the global batch that are images of the dataset. `global_step` keys the random
        numbers. Returns sums of loss, correct predictions and images: float32 [replicas of this worker, 3].
        """
        parts, place = self._per_replica(batch), self._place(global_step)
        with during(TOGETHER):
            return self._local(self._train_step(parts, tf.constant(real_images, tf.float32), place))

    def evaluate_step(self, batch: Iterator[Batch]) -> tf.Tensor:
        """Evaluate one global batch without training. Returns the same as `train_step`."""
        parts = self._per_replica(batch)
        with during(TOGETHER):
            return self._local(self._evaluate_step(parts))

    def train_steps(self, chunk: Chunk, *, global_step: int) -> tf.Tensor:
        """Train on all steps of a chunk of cached features in one call. `global_step`: number of the first one.

        One call for many steps, because a call takes longer than a step on a head. Returns the sums of `train_step`
        over all steps: float64 [replicas of this worker, 3]; for a pack [1, trials, 3].
        """
        parts, real_images = self._chunk_per_replica(chunk), tf.constant(chunk.real_images)
        with during(TOGETHER):
            return self._train_steps(parts, real_images, tf.constant(chunk.steps), self._place(global_step))

    def evaluate_steps(self, chunk: Chunk) -> tf.Tensor:
        """Evaluate all steps of a chunk of cached features. Returns the same as `train_steps`."""
        parts = self._chunk_per_replica(chunk)
        with during(TOGETHER):
            return self._evaluate_steps(parts, tf.constant(chunk.steps))

    def sum_over_workers(self, results: list[tf.Tensor]) -> list[Totals]:
        """Add up the results of steps over all steps, replicas and workers. One Totals for each trial.

        This is a collective: every worker must call it.
        """
        if not results:
            return [Totals()] * (self._trials.count if self._trials else 1)
        with during(TOGETHER):
            # In float64: a float32 sum over millions of images would lose whole images.
            by_replica = iter(np.sum([result.numpy().astype(np.float64) for result in results], axis=0))
            values = self.strategy.experimental_distribute_values_from_function(lambda _: tf.constant(next(by_replica)))
            summed = self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None)
            return [Totals(*totals) for totals in summed.numpy().reshape(-1, 3).tolist()]

    def _per_replica(self, batch: Iterator[Batch]) -> Batch:
        values: Batch = self.strategy.experimental_distribute_values_from_function(lambda _: next(batch))
        return values

    def _chunk_per_replica(self, chunk: Chunk) -> dict[str, tf.Tensor]:
        """The chunk's rows, divided among the replicas of this worker. Axis 0 is the step, except in `positions`."""
        share = self._training.batch_size // self.strategy.num_replicas_in_sync
        # Rows are the last axis of the labels.
        before = (slice(None),) * (chunk.labels.ndim - 1)
        parts = (slice(start, start + share) for start in range(0, len(chunk.positions), share))

        def of_next_replica(_: object) -> dict[str, tf.Tensor]:
            rows = next(parts)
            return {
                "features": tf.constant(chunk.features[*before, rows]),
                "labels": tf.constant(chunk.labels[*before, rows]),
                "real": tf.constant(chunk.real[*before, rows]),
                "positions": tf.constant(chunk.positions[rows]),
            }

        values: dict[str, tf.Tensor] = self.strategy.experimental_distribute_values_from_function(of_next_replica)
        return values

    def _train_chunk(
        self, chunk: dict[str, tf.Tensor], real_images: tf.Tensor, steps: tf.Tensor, first: tf.Tensor
    ) -> tf.Tensor:
        def one(index: tf.Tensor) -> tf.Tensor:
            def on_replica(part: dict[str, tf.Tensor], real: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
                return self._train_replica(_step_of(part, index), real, place)

            place = first + tf.stack([0, index])
            return self._local(self.strategy.run(on_replica, (chunk, real_images[index], place)))

        return sum_steps(one, steps, shape=self._sums_shape(chunk))

    def _evaluate_chunk(self, chunk: dict[str, tf.Tensor], steps: tf.Tensor) -> tf.Tensor:
        def one(index: tf.Tensor) -> tf.Tensor:
            return self._local(self.strategy.run(lambda part: self._evaluate_replica(_step_of(part, index)), (chunk,)))

        return sum_steps(one, steps, shape=self._sums_shape(chunk))

    def _local(self, values: tf.Tensor) -> tf.Tensor:
        """The results of the replicas of this worker, stacked."""
        return tf.stack(self.strategy.experimental_local_results(values))

    def _sums_shape(self, chunk: dict[str, tf.Tensor]) -> tuple[int, ...]:
        """Shape of the stacked results of this worker's replicas for one step. `chunk`: their parts."""
        replicas = len(self.strategy.experimental_local_results(chunk))
        return (replicas, self._trials.count, 3) if self._trials else (replicas, 3)

    def _place(self, global_step: int) -> tf.Tensor:
        """Seed and step, the key of a step's random numbers: int32 [2]; for a pack [streams, 2]."""
        return tf.constant(np.stack(np.broadcast_arrays(self._seeds, global_step), axis=-1), tf.int32)

    def _answers(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Labels, and 1 for each row that counts, else 0: [rows]; for a pack [trials, rows]."""
        labels, real = batch["labels"], batch["real"]
        return (self._trials.spread(labels), self._trials.spread(real)) if self._trials else (labels, real)

    def _train_replica(self, batch: Batch, real_images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        with step_randomness(StepRandomness(seed, batch["positions"], self._training.batch_size)):
            features, (labels, real) = self._features(batch, self._augmentation), self._answers(batch)
            statistics = BatchStatistics(real, images=real_images)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(self._variables)
                with statistics.used() if self._cut.normalises_by_batch else nullcontext():
                    logits = self._cut.logits(features, training=True)
                losses = cross_entropy(labels, logits, smoothing=self._label_smoothing, untrained=self._untrained)
                weights = real * tf.gather(self._class_weights, labels)
                replicas = self.strategy.num_replicas_in_sync
                loss = tf.reduce_sum(losses * weights) / real_images + self._cut.regularization() / replicas
                objective = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(objective, self._variables)
        self.optimizer.apply_gradients(zip(self._clipped(gradients), self._variables, strict=True))
        if statistics.seen:
            statistics.update_averages()
        return totals_of(labels, real, logits, losses)

    def _evaluate_replica(self, batch: Batch) -> tf.Tensor:
        labels, real = self._answers(batch)
        logits = self._cut.logits(self._features(batch, None), training=False)
        losses = cross_entropy(labels, logits, smoothing=0.0, untrained=self._untrained)
        return totals_of(labels, real, logits, losses)

    def _features(self, batch: Batch, augmentation: Augmentation | None) -> tf.Tensor:
        """The frozen part's output: the batch's cached features, or computed from its images."""
        if "features" in batch:
            return tf.cast(batch["features"], tf.float32)
        images = batch["images"]
        return self._cut.features(augmentation(images) if augmentation else images)

    def _clipped(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients, scaled so that the norm of their sum over replicas is at most `clip_norm`, in a pack a trial.

        Keras clips before the sum over replicas, so its result depends on the number of replicas.
        """
        if self._clip_norm is None:
            return gradients
        context = tf.distribute.get_replica_context()
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        scale = getattr(self.optimizer, "dynamic_scale", 1.0)
        limit = tf.cast(self._clip_norm * scale, tf.float32)
        if self._trials:
            squares = [tf.reduce_sum(tf.square(gradient), axis=[1, 2], keepdims=True) for gradient in summed]
            norm = tf.sqrt(tf.add_n(squares))
        else:
            norm = tf.linalg.global_norm(summed)
        # If the norm is not finite, the loss scale was too high, and the optimiser skips the step itself.
        factor = tf.where(tf.math.is_finite(norm), limit / tf.maximum(norm, limit), 1.0)
        return [gradient * factor for gradient in gradients]


def cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, *, smoothing: float | tf.Tensor, untrained: Sequence[int] = ()
) -> tf.Tensor:
    """Cross-entropy of each row, float32 [..., rows], for labels [..., rows] and logits [..., rows, classes].

    Smoothing spreads over all classes but the `untrained`, whose logits are masked. A held-out image can be of an
    untrained class: its loss is that of the smallest probability, whatever the model has learned.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - smoothing) + smoothing / (classes - len(untrained))
    if not untrained:
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    is_trained = ~np.isin(np.arange(classes), untrained)
    losses = tf.nn.softmax_cross_entropy_with_logits(targets * is_trained.astype(np.float32), logits)
    return tf.where(tf.gather(is_trained, labels), losses, -math.log(SMALLEST_PROBABILITY))


def totals_of(labels: tf.Tensor, real: tf.Tensor, logits: tf.Tensor, losses: tf.Tensor) -> tf.Tensor:
    """Sums over the real rows, [..., 3]: loss, correct answers and images. All but `logits` are [..., rows]."""
    correct = tf.cast(tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels), tf.float32)
    # A row that only fills the batch may have any loss, even NaN, and NaN times zero is NaN.
    losses = tf.where(real > 0, losses, 0.0)
    return tf.stack([tf.reduce_sum(value, axis=-1) for value in (losses, correct * real, real)], axis=-1)


def sum_steps(one: Callable[[tf.Tensor], tf.Tensor], steps: tf.Tensor, *, shape: tuple[int, ...]) -> tf.Tensor:
    """Run `one` for each step within the graph. Returns the sum of its results, which have this shape, in float64."""

    def body(index: tf.Tensor, totals: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index + 1, totals + tf.cast(one(index), tf.float64)

    start = (tf.constant(0), tf.zeros(shape, tf.float64))
    # Not in parallel: each step starts from the weights of the step before.
    return tf.while_loop(lambda index, _: index < steps, body, start, parallel_iterations=1)[1]


def _step_of(part: dict[str, tf.Tensor], index: tf.Tensor) -> Batch:
    """The batch of one step, from a replica's part of a chunk."""
    return {name: value if name == "positions" else tf.gather(value, index) for name, value in part.items()}
