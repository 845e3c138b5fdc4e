"""The fastest way on this machine from pixels to the outputs of frozen prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from transfer.activations.folding import FoldedNetwork
from transfer.activations.prefix import Prefix

Engine = Literal["auto", "tensorflow", "openvino"]
BATCH_SIZE = 32


class Forward:
    """A compiled function from pixels, or from what is kept of an earlier prefix, to the outputs of some prefixes.

    `engine` is what runs it; `batch_size` is the number of rows to hand over at a time.
    """

    def __init__(self, function: Any, engine: str, batch_size: int) -> None:
        self._function = function
        self.engine = engine
        self.batch_size = batch_size

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """For each batch, in order, the outputs of all prefixes, float32 [n, *prefix.shape] each.

        `batches`: float32 [n, image_size, image_size, 3] in 0..255, or [n, *start.shape], n at most `batch_size`.
        """
        for batch in batches:
            yield [output.numpy() for output in self._function(tf.constant(batch, tf.float32))]


def build_forward(
    prefixes: Sequence[Prefix], *, start: Prefix | None = None, engine: Engine = "auto", rows: int | None = None
) -> Forward:
    """A forward pass that gives the outputs of all `prefixes`, cuts of one network, in one go.

    It starts from pixels, or from the kept output of `start`, an earlier cut. `rows` is how many will come.
    """
    return Forward(_trace(prefixes, start), "tensorflow", BATCH_SIZE)


def _trace(prefixes: Sequence[Prefix], start: Prefix | None) -> Any:
    """The function of TensorFlow: float32 [n, *row] to a list of float32 [n, *prefix.shape]."""
    prefix = prefixes[0]
    entry = start.network.outputs[0] if start else prefix.network.inputs[0]
    row = start.shape if start else (prefix.image_size, prefix.image_size, 3)
    network = FoldedNetwork(entry, [prefix.network for prefix in prefixes])

    def forward(batch: tf.Tensor) -> list[tf.Tensor]:
        value = tf.cast(batch, entry.dtype) if start else prefix.preprocess(batch)
        return [tf.cast(output, tf.float32) for output in network(value)]

    return tf.function(forward).get_concrete_function(tf.TensorSpec([None, *row], tf.float32))
