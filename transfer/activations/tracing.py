"""One pass over several cuts of a network as a frozen TensorFlow function, and the plain Keras call it stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from transfer.activations.inference import InferenceNetwork
from transfer.activations.prefix import Prefix
from transfer.memory import FOR_THE_FROZEN_PART


def traced(function: Callable[[tf.Tensor], Any], argument: tf.TensorSpec) -> Any:
    """A concrete function of one argument."""
    # Autograph would first rewrite the source of everything that is called: four times the time.
    return tf.function(function, autograph=False).get_concrete_function(argument)


def with_constants(function: Any) -> Any:
    """A concrete function of one argument with its variables as constants; tables, if it has any, stay tables."""
    if not function.captured_inputs:
        return function
    frozen = convert_variables_to_constants_v2(function)
    names = {tensor.name for tensor in frozen.inputs}
    tables = [handle for handle, inside in function.graph.captures if inside.name in names]
    if not tables:
        return frozen
    (argument,) = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
    return traced(lambda rows: frozen(rows, *tables), tf.TensorSpec(argument.shape, argument.dtype))


class Pass:
    """From pixels, or from the kept output of the earlier cut `start`, to the outputs of all `prefixes` at once.

    The prefixes are cuts of one network. Raises ValueError when they, and `start` before them, are not.
    """

    def __init__(self, prefixes: Sequence[Prefix], start: Prefix | None) -> None:
        first = prefixes[0]
        self.row_shape = start.shape if start else (first.image_size, first.image_size, 3)
        """Shape of the input for one image."""
        self.subject, self.advice = "The frozen part", FOR_THE_FROZEN_PART
        self.name = (first.base, *self.row_shape, start.cut if start else "", *(prefix.cut for prefix in prefixes))
        """What decides how fast it runs; weights do not."""
        self._prefixes = prefixes
        self._start = start
        self._entry = start.network.outputs[0] if start else first.network.inputs[0]

    def trace(self) -> Any:
        """A concrete function, float32 [n, *row_shape] to a list of float32 [n, *prefix.shape], without variables."""
        network = InferenceNetwork(self._entry, [prefix.network for prefix in self._prefixes])

        def forward(rows: tf.Tensor) -> list[tf.Tensor]:
            return [tf.cast(output, tf.float32) for output in network(self._prepared(rows))]

        rows = tf.TensorSpec([None, *self.row_shape], tf.float32)
        # A SavedModel computes with variables of its own.
        return with_constants(traced(forward, rows))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """The outputs for rows, float32 [n, *row_shape], by calling the Keras network: what faster ways must equal."""
        network = keras.Model(self._entry, [prefix.network.outputs[0] for prefix in self._prefixes])
        outputs = network(self._prepared(tf.constant(rows, tf.float32)), training=False)
        return [tf.cast(output, tf.float32).numpy() for output in keras.tree.flatten(outputs)]

    def _prepared(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.cast(rows, self._entry.dtype) if self._start else self._prefixes[0].preprocess(rows)
