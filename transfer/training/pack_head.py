"""The heads of several trials as one network, which the program of a phase trains as it trains one head.

Most of the time of a step on one head goes into starting its operations: a step on 32 heads of 1,280 inputs and 10
classes takes four times as long as a step on one. The weights of all trials are stacked, [trials, in, out], and each
setting that differs between trials is a tensor along the same axis. No operation mixes numbers of two trials: each
ends with the weights that it would have alone, except for rounding, and a trial that diverges does not change others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from transfer.augmentation import KeyedDropout, current_randomness, dropped
from transfer.config import Config


class Trials:
    """The settings that may differ between the trials of a pack. Tensors are float32 [trials, 1, 1]."""

    def __init__(self, configs: Sequence[Config]) -> None:
        """`configs`: of trials with the same `pack_key`, so all their other settings are the same."""
        phases = [config.phases[0] for config in configs]
        seeds = [config.training.seed for config in configs]
        self.count = len(configs)
        self.learning_rates = _along_trials([phase.learning_rate for phase in phases])
        self.weight_decays = _along_trials([phase.optimizer.weight_decay for phase in phases])
        self.label_smoothings = _along_trials([config.training.label_smoothing for config in configs])
        self.l2 = [config.head.l2 for config in configs]
        self.dropouts = [config.head.dropout for config in configs]
        self.seeds = sorted(set(seeds))
        """The seeds of the streams of batches that the trials read, each once."""
        self.streams = [self.seeds.index(seed) for seed in seeds]
        """Index of the stream that each trial reads."""

    def spread(self, x: tf.Tensor) -> tf.Tensor:
        """Rows of all trials, [1, rows], or of each stream, [streams, rows], as [trials, rows]."""
        return tf.broadcast_to(_spread(x, self.streams), (self.count, x.shape[1]))


def build_pack_head(head: keras.Model, trials: Trials, weights: Sequence[Sequence[np.ndarray]]) -> keras.Model:
    """The network of `head` (`build_head`), from features [streams, batch, …] to logits [trials, batch, classes].

    `weights`: those of each trial's head. Dense layers and dropout get an axis for the trials.
    """
    shape = head.input_shape[1:]
    dropouts = [layer for layer in head.layers if isinstance(layer, KeyedDropout)]

    def of_pack(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.layers.Dense):
            return _PackDense(layer, trials)
        if isinstance(layer, KeyedDropout):
            return _PackDropout(trials, on_features=layer is dropouts[0], name=layer.name)
        if isinstance(layer, keras.layers.Flatten):
            return keras.layers.Reshape((-1, math.prod(shape)), name=layer.name)
        return type(layer).from_config(layer.get_config())

    features = keras.Input((None, *shape), name="features")
    packed = keras.models.clone_model(head, input_tensors=features, clone_function=of_pack)
    for index, variable in enumerate(packed.trainable_variables):
        variable.assign(_stack([of_trial[index] for of_trial in weights]))
    return packed


def restore_optimizer(optimizer: keras.optimizers.Optimizer, states: Sequence[Sequence[np.ndarray]]) -> None:
    """Set the optimiser to the trials' states, all of the same step. Empty states leave it fresh."""
    for index, variable in enumerate(optimizer.variables if states[0] else []):
        values = [state[index] for state in states]
        # The only scalar is the number of steps, which is the same for all trials.
        variable.assign(values[0] if values[0].ndim == 0 else _stack(values))


def states_of(
    head: keras.Model, optimizer: keras.optimizers.Optimizer
) -> list[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Each trial's weights and the state of its optimiser, in the form that a run of its own would have.

    They are copies, because a view of one trial's arrays would hold those of all trials in memory.
    """
    weights = [np.array(variable) for variable in head.trainable_variables]
    counter, *slots = [np.array(variable) for variable in optimizer.variables]
    # Keras lists the slots weight by weight, and a head's kernels and biases alternate.
    slots_a_weight = len(slots) // len(weights)

    def own(trial: int, arrays: list[np.ndarray], *, a_weight: int) -> list[np.ndarray]:
        is_bias = [place // a_weight % 2 == 1 for place in range(len(arrays))]
        return [(each[trial, 0] if bias else each[trial]).copy() for each, bias in zip(arrays, is_bias, strict=True)]

    return [
        (own(trial, weights, a_weight=1), [counter, *own(trial, slots, a_weight=slots_a_weight)])
        for trial in range(len(weights[0]))
    ]


class _PackDense(keras.layers.Layer):
    """The `Dense` layers of all trials, from vectors [trials or 1, batch, in]."""

    def __init__(self, of_one: keras.layers.Dense, trials: Trials) -> None:
        super().__init__(name=of_one.name)
        self._units = of_one.units
        self._activation = of_one.activation
        self._count = trials.count
        self._l2, self._is_penalised = _along_trials(trials.l2), any(trials.l2)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights, all zero."""

        def weight(name: str, *shape: int | None, **options: object) -> keras.Variable:
            return self.add_weight(name=name, shape=(self._count, *shape), initializer="zeros", **options)

        self._kernel = weight(
            "kernel", input_shape[-1], self._units, regularizer=self._penalty if self._is_penalised else None
        )
        self._bias = weight("bias", 1, self._units)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """[trials, batch, units]."""
        return self._activation(tf.matmul(inputs, self._kernel) + self._bias)

    def _penalty(self, kernel: tf.Tensor) -> tf.Tensor:
        """The sum of the trials' L2 penalties. Only a trial's own term contains its weights."""
        return tf.reduce_sum(self._l2 * tf.square(kernel))


class _PackDropout(keras.layers.Layer):
    """`KeyedDropout` of all trials, each with the random numbers of its stream and its own rate.

    Trials with the same seed and rate drop the same features. Since the features are a head's largest tensor, they are
    masked once for all such trials. `on_features`: the inputs are features, [streams, batch, units], in evaluation
    [1, batch, units]; otherwise they are [trials, batch, units].
    """

    def __init__(self, trials: Trials, *, on_features: bool, name: str) -> None:
        super().__init__(name=name)
        of_trials = list(zip(trials.streams, trials.dropouts, strict=True))
        masks = sorted(set(of_trials)) if on_features else of_trials
        self._on_features = on_features
        self._mask_of = [masks.index(mask) for mask in of_trials]
        self._streams = [stream for stream, _ in masks]
        self._rates = _along_trials([rate for _, rate in masks]) if any(trials.dropouts) else None

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Masked and rescaled inputs in training, the inputs themselves otherwise."""
        if not training:
            return inputs
        x = _spread(inputs, self._streams) if self._on_features else inputs
        if self._rates is not None:
            numbers = current_randomness().uniform(tuple(inputs.shape[2:]))
            x = dropped(x, _spread(numbers, self._streams), self._rates)
        return _spread(x, self._mask_of) if self._on_features else x


def _spread(x: tf.Tensor, places: Sequence[int]) -> tf.Tensor:
    """`x[places]` along axis 0. Where `x` itself is that, or broadcasts to it, `x` without a copy."""
    count = x.shape[0]
    return x if count == 1 or list(places) == list(range(count)) else tf.gather(x, places)


def _along_trials(values: Sequence[float]) -> tf.Tensor:
    return tf.constant(values, tf.float32)[:, tf.newaxis, tf.newaxis]


def _stack(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Kernels as [trials, in, out], biases as [trials, 1, out]."""
    stacked = np.stack(arrays)
    return stacked if stacked.ndim == 3 else stacked[:, np.newaxis]
