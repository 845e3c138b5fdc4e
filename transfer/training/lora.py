"""LoRA: differences of low rank to kernels of the base (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

Keras's own `enable_lora` is not used. It changes a layer for good, so trials of different ranks could not share a
network, and the digest of the network would change; its initial weights have no seed; and it takes a kernel of three
axes, as in MultiHeadAttention, for a matrix for each head, with as many As as heads. Here a layer stays as it is.
Steps run it with another value of its kernel, and at the end of the phase the kernel gets that value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from transfer.backbone.projections import Projection
from transfer.config import LoraConfig


@dataclass(frozen=True, eq=False)
class Adapter:
    """A difference to one kernel: `scale` times A, `down` [inputs, rank], times B, `up` [rank, outputs]."""

    target: Projection
    down: keras.Variable
    up: keras.Variable
    scale: float

    @property
    def variables(self) -> list[keras.Variable]:
        """A and B."""
        return [self.down, self.up]

    def start(self, seed: Sequence[int]) -> None:
        """Begin with no difference: A is He uniform by the seed, B is 0."""
        limit = np.sqrt(6 / self.target.inputs)
        self.down.assign(np.random.default_rng(seed).uniform(-limit, limit, self.down.shape).astype(np.float32))
        self.up.assign(np.zeros(self.up.shape, np.float32))

    def kernel(self) -> tf.Tensor:
        """The kernel with the difference, float32 of the kernel's shape."""
        kernel, axes = self.target.kernel, self.target.axes
        difference = self.scale * tf.matmul(self.down.value, self.up.value)
        shaped = tf.reshape(difference, [kernel.shape[axis] for axis in axes])
        return kernel.value + tf.transpose(shaped, np.argsort(axes))

    def merge(self) -> None:
        """Put the difference into the kernel. A and B stay as they are."""
        self.target.kernel.assign(self.kernel())


def build_adapters(targets: Sequence[Projection], lora: LoraConfig) -> list[Adapter]:
    """New adapters, without values yet (`Adapter.start`). Must be called within the strategy's scope."""

    def zeros(*shape: int) -> keras.Variable:
        return keras.Variable("zeros", shape=shape, dtype="float32")

    return [
        Adapter(target, zeros(target.inputs, lora.rank), zeros(lora.rank, target.outputs), lora.alpha / lora.rank)
        for target in targets
    ]


def call_adapted(network: keras.Model, inputs: tf.Tensor, adapters: Sequence[Adapter]) -> tf.Tensor:
    """Run a part of the base in inference mode, with kernels that have their differences."""
    values = [(adapter.target.kernel, adapter.kernel()) for adapter in adapters]
    with keras.StatelessScope(values, collect_losses=True, initialize_variables=False) as scope:
        outputs = network(inputs, training=False)
    # Penalties on activations, which the scope holds back. A network takes none itself, but its input layer does.
    network.layers[0].add_loss(scope.losses)
    return outputs


def penalties(adapters: Sequence[Adapter]) -> list[tf.Tensor]:
    """The penalties that the base's own regularisers put on its kernels, which are those with the differences."""
    regularized = [adapter for adapter in adapters if adapter.target.kernel.regularizer is not None]
    return [adapter.target.kernel.regularizer(adapter.kernel()) for adapter in regularized]
