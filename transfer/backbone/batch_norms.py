"""BatchNorms that normalise by the images they see, not by stored statistics.

A pretrained network keeps the statistics that it was trained with. A network with random weights has none: they are
estimated on some images before anything is trained (`estimate_statistics`), and each step of training normalises what
is trained by its own batch (`BatchStatistics`), as Keras does with `training=True`. But only BatchNorms do so, and over
all replicas and workers: other layers stay in inference mode, because dropout of Keras draws differently on each
replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf

from transfer.runtime.keras_private import inner_layers


def batch_norms_of(network: keras.Model) -> list[Any]:
    """The BatchNorms of a network, each once, in a fixed order, also those inside other layers."""
    return [layer for layer in inner_layers(network) if isinstance(layer, keras.layers.BatchNormalization)]


def statistics_of(network: keras.Model) -> list[keras.Variable]:
    """Means and variances that the BatchNorms of a network have stored."""
    return [variable for layer in batch_norms_of(network) for variable in (layer.moving_mean, layer.moving_variance)]


def estimate_statistics(network: keras.Model, inputs: tf.Tensor) -> None:
    """Replace the stored statistics of a network by those on some inputs, preprocessed images [n, height, width, ...].

    All inputs are one batch, so each layer sees what the layers before it answer with their new statistics.
    """
    watch_batch_norms(network)
    layers: list[Any] = []

    # As a graph, which frees a layer's answers after their last use. Keras holds all of them in an eager call.
    @tf.function(autograph=False)
    def estimated(batch: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        statistics = BatchStatistics(tf.ones(len(inputs)), images=float(len(inputs)))
        with statistics.used():
            network(batch, training=False)
        layers[:] = [layer for layer, _, _ in statistics.seen]
        return [(mean, variance) for _, mean, variance in statistics.seen]

    found = estimated(inputs)
    for layer, (mean, variance) in zip(layers, found, strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)


class BatchStatistics:
    """Means and variances of one global batch, by which BatchNorms normalise while `used` is entered.

    The layers must be watched (`watch_batch_norms`). In a replica, sums are taken over all replicas.
    """

    def __init__(self, real: tf.Tensor, *, images: tf.Tensor | float) -> None:
        """`real`: float32 [rows], 0 for a row that only fills the batch. `images`: number of the others everywhere."""
        self._real = real
        self._images = images
        self.seen: list[tuple[Any, tf.Tensor, tf.Tensor]] = []
        """Each call of a layer, with the means and variances of its channels: float32 [channels] each."""

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let watched layers normalise by the batch while the block is traced or run."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def normalised(self, layer: Any, inputs: tf.Tensor) -> tf.Tensor:
        """The answer of a BatchNorm: as Keras computes it, in float32, from the real rows of the whole batch."""
        x = tf.cast(inputs, tf.float32)
        rank = x.shape.rank
        others = [axis for axis in range(rank) if axis != layer.axis % rank]
        by_channel = [-1 if axis == layer.axis % rank else 1 for axis in range(rank)]
        is_real = tf.reshape(self._real > 0, [-1] + [1] * (rank - 1))
        # Deviations from a number near the mean: squares of large values would lose the variance in rounding.
        near = tf.stop_gradient(tf.convert_to_tensor(layer.moving_mean))
        deviations = tf.where(is_real, x - tf.reshape(near, by_channel), 0.0)
        sums = tf.stack([tf.reduce_sum(values, others) for values in (deviations, tf.square(deviations))])
        positions = tf.cast(tf.reduce_prod(tf.gather(tf.shape(x), tf.constant(others[1:], tf.int32))), tf.float32)
        mean, square = tf.unstack(_sum_over_replicas(sums) / (self._images * positions))
        variance = tf.maximum(square - tf.square(mean), 0.0)
        mean = near + mean
        self.seen.append((layer, mean, variance))
        return keras.ops.cast(
            keras.ops.batch_normalization(
                x, mean, variance, layer.axis, offset=layer.beta, scale=layer.gamma, epsilon=layer.epsilon
            ),
            layer.compute_dtype,
        )

    def update_averages(self) -> None:
        """Move the stored statistics towards those of the batch by the layers' momentum. Called in a replica."""
        strategy = tf.distribute.get_strategy()
        for layer, mean, variance in self.seen:
            for variable, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
                # All replicas have the same value. So each updates its own copy, and none asks the others.
                moved = variable.value * layer.momentum + value * (1.0 - layer.momentum)
                strategy.extended.update(variable.value, lambda own, moved: own.assign(moved), args=(moved,))


# Replicas of one process are traced in threads of their own, which take turns: each has its own value.
_current: ContextVar[BatchStatistics | None] = ContextVar("batch_statistics", default=None)


def watch_batch_norms(network: keras.Model) -> None:
    """Let the BatchNorms of a network normalise by the batch wherever `BatchStatistics.used` is entered.

    Anywhere else they answer as before. Keras offers this only for a whole network, dropout included, and neither
    leaves rows out nor lets a replica say what is stored.
    """
    for layer in batch_norms_of(network):
        if not isinstance(layer.call, _WatchedCall):
            layer.call = _WatchedCall(layer)


class _WatchedCall:
    """The call of a BatchNorm, which asks first whether there are statistics of a batch."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._plain = layer, layer.call

    def __call__(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        statistics = _current.get()
        if statistics is None:
            return self._plain(inputs, training=training, mask=mask)
        return statistics.normalised(self._layer, inputs)


def _sum_over_replicas(values: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    # Outside of a replica, as in `estimate_statistics` under a strategy, each process computes for itself.
    return values if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, values)
