"""From pixels to what a network expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preprocessing:
    """A named function on float32 pixels [batch, height, width, 3] in 0..255, RGB.

    It is made of plain TensorFlow operations, so it works eagerly, in `tf.function`, in `tf.data` and in an export.
    """

    name: str
    function: Callable[[Any], Any] = field(compare=False)

    def __call__(self, images: Any) -> Any:
        """The images as the network expects them, float32 of the same shape."""
        return self.function(images)


def _unchanged(images: Any) -> Any:
    return images


def _to_unit(images: Any) -> Any:
    return images / 255.0


def _to_signed_unit(images: Any) -> Any:
    return images / 127.5 - 1.0


# By the configuration's `base.preprocessing`.
RANGES = {
    "0..255": Preprocessing("0..255", _unchanged),
    "0..1": Preprocessing("0..1", _to_unit),
    "-1..1": Preprocessing("-1..1", _to_signed_unit),
}
