"""The heads of several trials, trained side by side as one program.

Most of a step on one head goes into starting its operations: on 32 heads of 1,280 inputs and 10 classes a step takes
four times as long as on one. The weights of all trials are stacked, [trials, in, out], and everything that the trials
differ in is a tensor along that axis. No number of one trial ever meets one of another: each ends with the weights that
it would have alone, but for rounding, and one that diverges leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from transfer.activations.batches import Chunk
from transfer.augmentation.randomness import StepRandomness
from transfer.config import Config
from transfer.training.optimizer import build_optimizer
from transfer.training.step import clip_factor, cross_entropy, sum_steps, totals_of


@dataclass(frozen=True)
class HeadState:
    """One trial's weights and the state of its optimiser, as `Checkpoint` has them of a run that is trained alone.

    No state: a fresh optimiser.
    """

    weights: list[np.ndarray]
    optimizer: list[np.ndarray]


class StackedHeads:
    """The compiled training and evaluation steps of trials that `pack_key` found to have the rest in common."""

    def __init__(
        self,
        configs: Sequence[Config],
        states: Sequence[HeadState],
        *,
        class_weights: np.ndarray,
        steps_per_epoch: int,
    ) -> None:
        """Trial k begins with `states[k]`; all of them are equally far. `class_weights`: float32 [classes]."""
        common = configs[0]
        phases = [config.phases[0] for config in configs]
        seeds = [config.training.seed for config in configs]
        rates = [config.head.dropout for config in configs]
        self.seeds = sorted(set(seeds))
        """Of the streams of batches that the trials read, each one once."""
        self._batch_size = common.training.batch_size
        self._clip_norm = phases[0].optimizer.clip_norm
        self._sigmoid = common.head.output == "sigmoid"
        self._class_weights = tf.constant(class_weights, tf.float32)
        self._smoothing = _along_trials([config.training.label_smoothing for config in configs])
        self._l2 = [config.head.l2 for config in configs]
        self._streams = [self.seeds.index(seed) for seed in seeds]
        # Trials with the same seed and the same rate drop the same inputs, and a head's inputs are its largest tensor.
        pairs = list(zip(self._streams, rates, strict=True))
        inputs = sorted(set(pairs))
        self._input_of = [inputs.index(pair) for pair in pairs]
        self._drop_inputs = _Dropout([stream for stream, _ in inputs], [rate for _, rate in inputs])
        self._drop_hidden = _Dropout(self._streams, rates)

        self._shapes = [weight.shape for weight in states[0].weights]
        stacked = [_stack([state.weights[index] for state in states]) for index in range(len(self._shapes))]
        variables = [keras.Variable(weight, dtype="float32") for weight in stacked]
        self._variables = [variable.value for variable in variables]
        self._optimizer = build_optimizer(
            phases[0],
            learning_rate=_along_trials([phase.learning_rate for phase in phases]),
            weight_decay=_along_trials([phase.optimizer.weight_decay for phase in phases]),
            steps_per_epoch=steps_per_epoch,
        )
        self._optimizer.build(variables)
        for index, variable in enumerate(self._optimizer.variables if states[0].optimizer else []):
            # Scalars count steps, which are the same for all.
            values = [state.optimizer[index] for state in states]
            variable.assign(values[0] if values[0].ndim == 0 else _stack(values))

        # Nothing here needs autograph, which would first rewrite the source of everything that is called.
        compiled = partial(tf.function, autograph=False)
        self._train_steps = compiled(self._train_chunk)
        self._evaluate_steps = compiled(self._evaluate_chunk)

    def train_steps(self, chunks: Sequence[Chunk], *, global_step: int) -> np.ndarray:
        """Train all trials on all steps of the chunks, one for each of `seeds`, the first of which is `global_step`.

        Returns each trial's loss, correct answers and images, summed over the steps: float64 [trials, 3].
        """
        totals: np.ndarray = self._train_steps(
            [tf.constant(chunk.activations) for chunk in chunks],
            [tf.constant(chunk.labels) for chunk in chunks],
            tf.constant(chunks[0].real),
            tf.constant(chunks[0].real_images),
            tf.constant(chunks[0].steps),
            tf.constant(global_step),
        ).numpy()
        return totals

    def evaluate_steps(self, chunk: Chunk) -> np.ndarray:
        """Evaluate all trials on all steps of a chunk. Returns what `train_steps` does."""
        totals: np.ndarray = self._evaluate_steps(
            tf.constant(chunk.activations), tf.constant(chunk.labels), tf.constant(chunk.real), tf.constant(chunk.steps)
        ).numpy()
        return totals

    def learning_rates(self) -> list[float]:
        """Each trial's learning rate of the next step."""
        rates = keras.ops.convert_to_numpy(self._optimizer.learning_rate)
        return [float(rate) for rate in rates.reshape(-1)]

    def states(self) -> list[HeadState]:
        """Where each trial stands now, in copies: whoever keeps one trial's shall not keep them all."""
        weights = [variable.numpy() for variable in self._variables]
        counter, *slots = [np.array(variable) for variable in self._optimizer.variables]
        # Keras lists the slots of one weight after those of the other.
        slots_a_weight = len(slots) // len(weights)
        slot_shapes = [shape for shape in self._shapes for _ in range(slots_a_weight)]
        return [
            HeadState(
                weights=[array[k].reshape(shape).copy() for array, shape in zip(weights, self._shapes, strict=True)],
                optimizer=[
                    counter,
                    *(array[k].reshape(shape).copy() for array, shape in zip(slots, slot_shapes, strict=True)),
                ],
            )
            for k in range(len(self._streams))
        ]

    def _train_chunk(
        self,
        activations: list[tf.Tensor],
        labels: list[tf.Tensor],
        real: tf.Tensor,
        real_images: tf.Tensor,
        steps: tf.Tensor,
        global_step: tf.Tensor,
    ) -> tf.Tensor:
        def one(index: tf.Tensor) -> tf.Tensor:
            return self._train_step(
                tf.stack([_vectors(each[index]) for each in activations]),
                tf.stack([each[index] for each in labels]),
                real[index],
                real_images[index],
                global_step + index,
            )

        return sum_steps(one, steps, rows=len(self._streams))

    def _evaluate_chunk(
        self, activations: tf.Tensor, labels: tf.Tensor, real: tf.Tensor, steps: tf.Tensor
    ) -> tf.Tensor:
        def one(index: tf.Tensor) -> tf.Tensor:
            logits = self._logits(_vectors(activations[index])[tf.newaxis], _no_dropout)
            expected, is_real = (tf.broadcast_to(each[index], logits.shape[:2]) for each in (labels, real))
            return totals_of(expected, is_real, logits, cross_entropy(expected, logits, smoothing=0.0))

        return sum_steps(one, steps, rows=len(self._streams))

    def _train_step(
        self, vectors: tf.Tensor, labels: tf.Tensor, real: tf.Tensor, real_images: tf.Tensor, global_step: tf.Tensor
    ) -> tf.Tensor:
        """`vectors`: [streams, batch, features]. `labels`: [streams, batch]. `real`: [batch]."""
        positions = tf.range(self._batch_size)
        draws = [StepRandomness(tf.stack([seed, global_step]), positions, self._batch_size) for seed in self.seeds]

        def drop(x: tf.Tensor, layer: int) -> tf.Tensor:
            if layer:
                return self._drop_hidden(x, draws)
            return _spread(self._drop_inputs(x, draws), self._input_of)

        labels = tf.gather(labels, self._streams)
        real = tf.broadcast_to(real, labels.shape)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self._variables)
            logits = self._logits(_spread(vectors, self._drop_inputs.streams), drop)
            losses = cross_entropy(labels, logits, smoothing=self._smoothing)
            weights = real * tf.gather(self._class_weights, labels)
            of_trials = tf.reduce_sum(losses * weights, axis=-1) / real_images + self._penalties()
            # A trial's weights are in no other term than its own.
            loss = tf.reduce_sum(of_trials)
        gradients = self._clipped(tape.gradient(loss, self._variables))
        self._optimizer.apply_gradients(zip(gradients, self._variables, strict=True))
        return totals_of(labels, real, logits, losses)

    def _logits(self, x: tf.Tensor, drop: Callable[[tf.Tensor, int], tf.Tensor]) -> tf.Tensor:
        """Logits, [trials, batch, classes], of vectors [trials or 1, batch, features]; what `build_head` builds."""
        kernels, biases = self._variables[::2], self._variables[1::2]
        for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            x = tf.matmul(drop(x, layer), kernel) + bias
            if layer + 1 < len(kernels):
                x = tf.nn.relu(x)
        return tf.concat([tf.zeros_like(x), x], axis=-1) if self._sigmoid else x

    def _penalties(self) -> tf.Tensor:
        """Each trial's L2 penalty on its kernels, [trials]."""
        if not any(self._l2):
            return tf.zeros(len(self._l2))
        squares = [tf.reduce_sum(tf.square(kernel), axis=[1, 2]) for kernel in self._variables[::2]]
        return tf.constant(self._l2, tf.float32) * tf.add_n(squares)

    def _clipped(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients scaled so that the norm of each trial's own is at most the phase's `clip_norm`."""
        if self._clip_norm is None:
            return gradients
        squares = [tf.reduce_sum(tf.square(gradient), axis=[1, 2], keepdims=True) for gradient in gradients]
        factor = clip_factor(tf.sqrt(tf.add_n(squares)), self._clip_norm)
        return [gradient * factor for gradient in gradients]


class _Dropout:
    """What `KeyedDropout` does, for several tensors, each with the numbers of its stream and a rate of its own."""

    def __init__(self, streams: list[int], rates: list[float]) -> None:
        self.streams = streams
        self._drops = any(rates)
        self._rates = _along_trials(rates)
        self._kept_shares = _along_trials([1.0 - rate for rate in rates])

    def __call__(self, x: tf.Tensor, draws: list[StepRandomness]) -> tf.Tensor:
        """Masked and rescaled vectors [len(streams), batch, units]; a rate of 0 leaves them as they are."""
        if not self._drops:
            return x
        numbers = tf.stack([draw.uniform(tuple(x.shape[2:])) for draw in draws])
        keep = _spread(numbers, self.streams) >= self._rates
        return tf.where(keep, x / self._kept_shares, tf.zeros_like(x))


def _no_dropout(x: tf.Tensor, layer: int) -> tf.Tensor:  # noqa: ARG001 - the same in every layer
    return x


def _spread(x: tf.Tensor, places: list[int]) -> tf.Tensor:
    """`x[places]` along axis 0, or what broadcasts like it, without a copy where none is needed."""
    count = x.shape[0]
    return x if count == 1 or places == list(range(count)) else tf.gather(x, places)


def _vectors(activations: tf.Tensor) -> tf.Tensor:
    """[batch, *shape] as [batch, features], in float32."""
    return tf.reshape(tf.cast(activations, tf.float32), (activations.shape[0], -1))


def _along_trials(values: list[float]) -> tf.Tensor:
    return tf.constant(values, tf.float32)[:, tf.newaxis, tf.newaxis]


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Kernels as [trials, in, out], biases as [trials, 1, out]."""
    stacked = np.stack(arrays)
    return stacked if stacked.ndim == 3 else stacked[:, np.newaxis]
