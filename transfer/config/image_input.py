"""What a network takes of an image: how large it is, and how an image of any size becomes that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Fit = Literal["stretch", "crop", "pad"]


@dataclass(frozen=True)
class ImageInput:
    """The images that a network takes. `fit_image` in `dataset/decode.py` makes them.

    Example:
        >>> ImageInput(160, 224, fit="crop").shape
        (160, 224, 3)
        >>> ImageInput(96, 96).title
        '96×96 pixels, stretched'
    """

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    fit: Fit = "stretch"
    """How an image of another shape becomes this one: `base.fit`."""
    crop_share: float = 1.0
    """With `crop`: share of the largest part of the right shape that is taken, a side, 0 to 1."""
    antialias: bool = False
    """Whether an image that is made smaller is averaged over all of its pixels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return (self.height, self.width, 3)

    @property
    def title(self) -> str:
        """In words, for people."""
        how = {"stretch": "stretched", "crop": "cropped", "pad": "padded"}[self.fit]
        share = f" to {self.crop_share:g}" if self.fit == "crop" and self.crop_share < 1 else ""
        return f"{self.height}×{self.width} pixels, {how}{share}{', antialiased' if self.antialias else ''}"

    def describe(self) -> dict[str, Any]:
        """All that decides how an image is seen, in JSON's own types; `ImageInput(**described)` is the same again."""
        return asdict(self)
