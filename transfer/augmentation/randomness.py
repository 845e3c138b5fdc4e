"""Random numbers that do not depend on how a batch is divided.

Dropout masks and augmentations are drawn for the whole global batch, from (seed, step), and each replica takes its
rows of them. So the same step draws the same numbers in one process, on two replicas and on sixty-four workers, and a
resumed run draws what the interrupted one would have drawn: there is no generator state to lose.

Drawing for the global batch on each replica costs next to nothing: a mask for 256 × 1,280 units is 0.3 M numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import keras
import tensorflow as tf


@dataclass
class StepRandomness:
    """What a replica needs to draw its part of a step's random numbers.

    `seed`: int32 [2], different for each step. `positions`: int32 [rows], the place of this replica's rows in the
    global batch of `batch_size` rows.
    """

    seed: tf.Tensor
    positions: tf.Tensor
    batch_size: int
    _draws: int = field(default=0, init=False)

    def next_seed(self) -> tf.Tensor:
        """A seed, int32 [2], for the next draw of this step; each call gives another one."""
        self._draws += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self._draws)

    def uniform(self, row_shape: tuple[int, ...]) -> tf.Tensor:
        """Uniform numbers in [0, 1), float32 [rows, *row_shape], the same for a row wherever it is computed."""
        numbers = tf.random.stateless_uniform((self.batch_size, *row_shape), seed=self.next_seed())
        return tf.gather(numbers, self.positions)


_current: ContextVar[StepRandomness | None] = ContextVar("step_randomness", default=None)


@contextmanager
def step_randomness(randomness: StepRandomness) -> Iterator[None]:
    """Make `randomness` what random layers draw from while the block is traced or run."""
    token = _current.set(randomness)
    try:
        yield
    finally:
        _current.reset(token)


def current_randomness() -> StepRandomness:
    """The randomness of the step being traced. Raises RuntimeError outside of one."""
    randomness = _current.get()
    if randomness is None:
        raise RuntimeError("A random layer was called with training=True outside of a training step.")
    return randomness


class KeyedSeedGenerator(keras.random.SeedGenerator):
    """Gives the step's seeds to Keras functions that insist on a SeedGenerator, without its stored state."""

    def __init__(self) -> None:
        # Not calling super().__init__ is the point: it would make a variable that every replica advances on its own.
        self.name = "keyed_seed_generator"

    def next(self, ordered: bool = True) -> tf.Tensor:  # noqa: ARG002 - the signature is Keras's
        """A seed of the step being traced, int32 [2]."""
        return current_randomness().next_seed()


@keras.saving.register_keras_serializable(package="transfer")
class KeyedDropout(keras.layers.Layer):
    """Dropout (Srivastava et al., 2014) on vectors [batch, units], with masks that do not depend on the replica."""

    def __init__(self, rate: float, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Masked and rescaled inputs in training, the inputs themselves otherwise."""
        if not training or self.rate == 0.0:
            return inputs
        keep = current_randomness().uniform(tuple(inputs.shape[1:])) >= self.rate
        return tf.where(keep, inputs / (1.0 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, object]:
        """What Keras writes down of the layer."""
        return {**super().get_config(), "rate": self.rate}
