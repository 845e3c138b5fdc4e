"""The layers of a network that multiply by a matrix, in attention or outside of it: what can get an adapter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import keras

from transfer.errors import BackboneError
from transfer.runtime.keras_private import direct_layers, inner_layers, own_trainable_variables

Targets = Literal["attention", "dense", "all"]
_MATRIX_LAYERS = (keras.layers.Dense, keras.layers.EinsumDense)
_SHOWN = 3


@dataclass(frozen=True)
class Projection:
    """A Dense or EinsumDense layer whose kernel training can change."""

    name: str
    """Name of the layer, after those of the layers around it."""
    kernel: keras.Variable
    axes: tuple[int, ...]
    """The kernel's axes: first those over which it sums, then those of its output."""
    inputs: int
    """Rows of the kernel as a matrix: the product of the lengths of the first axes."""
    outputs: int
    """Columns of the kernel as a matrix."""
    in_attention: bool

    @property
    def parameters_a_rank(self) -> int:
        """Parameters of an adapter of rank 1; one of rank r has r times as many."""
        return self.inputs + self.outputs

    def is_among(self, targets: Targets) -> bool:
        """Whether `phases.*.lora.targets` means this layer."""
        return targets == "all" or self.in_attention == (targets == "attention")


def projections_in(layers: Iterable[keras.layers.Layer]) -> list[Projection]:
    """The projections among `layers` and inside them, each kernel once, in a fixed order.

    A projection is in attention if the class of a layer around it has `Attention` in its name, or its own name has
    `attention`, in capitals or not. Quantised kernels, and those with a constraint, which a sum of matrices need not
    meet, are none.
    """
    found = {id(each.kernel): each for each in _walk(layers, "", in_attention=False)}
    return list(found.values())


def targets_in(network: keras.Model, targets: Targets, *, name: str) -> list[Projection]:
    """The projections of the unfrozen part of a network that `targets` means.

    `name`: of the base, for messages. Raises BackboneError, which says what there is instead, if there are none.
    """
    there = projections_in(network.layers)
    meant = [each for each in there if each.is_among(targets)]
    if meant:
        return meant
    if there:
        names = ", ".join(f"`{each.name}`" for each in there[:_SHOWN])
        others = f"{len(there)} Dense or EinsumDense outside of attention" if targets == "attention" else "attention"
        if targets == "dense":
            others = f"{len(there)} Dense or EinsumDense in attention"
        has = f"there are {others}: {names}{', …' if len(there) > _SHOWN else ''}"
        advice = f"Use `targets: {'dense' if targets == 'attention' else 'attention'}`, or unfreeze more blocks."
    else:
        kinds = Counter(type(layer).__name__ for layer in inner_layers(network) if own_trainable_variables(layer))
        has = "the layers with weights there are " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        advice = "Unfreeze more blocks, if there are such layers further down (`transfer inspect`). Or leave lora out."
    wanted = {"attention": "Dense or EinsumDense in attention", "dense": "Dense or EinsumDense outside of attention"}
    raise BackboneError(
        f"lora.targets is `{targets}`, and {name} has no {wanted.get(targets, 'Dense or EinsumDense')} in its unfrozen "
        f"blocks; {has}.",
        advice=advice,
    )


def _walk(layers: Iterable[keras.layers.Layer], around: str, *, in_attention: bool) -> Iterator[Projection]:
    for layer in layers:
        name = f"{around}{layer.name}"
        if isinstance(layer, _MATRIX_LAYERS):
            if _has_plain_kernel(layer):
                yield _projection(layer, name, in_attention=in_attention or "attention" in layer.name.lower())
        else:
            attends = in_attention or "attention" in type(layer).__name__.lower()
            yield from _walk(direct_layers(layer), f"{name}/", in_attention=attends)


def _has_plain_kernel(layer: keras.layers.Layer) -> bool:
    # The kernel of a layer that was saved with adapters of Keras's own is no variable, but a sum.
    is_trainable = any(layer.kernel is variable for variable in own_trainable_variables(layer))
    return is_trainable and layer.kernel.constraint is None


def _projection(layer: keras.layers.Layer, name: str, *, in_attention: bool) -> Projection:
    shape = tuple(layer.kernel.shape)
    summed = [0]
    if isinstance(layer, keras.layers.EinsumDense):
        # `abc,cde->abde`: the kernel sums over those of its axes that the output does not have.
        _, of_kernel, of_output = re.split(",|->", layer.equation.replace(" ", ""))
        summed = [axis for axis, letter in enumerate(of_kernel) if letter not in of_output]
    axes = (*summed, *(axis for axis in range(len(shape)) if axis not in summed))
    inputs = prod(shape[axis] for axis in summed)
    return Projection(name, layer.kernel, axes, inputs, prod(shape) // inputs, in_attention)
