"""What a network takes of an image: its size and channels, and how an image of any size and depth becomes that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Fit = Literal["stretch", "crop", "pad"]
Depth = Literal["reject", "scale"] | tuple[int, int]
"""What becomes of 16 bits a channel: `dataset.depth`, a window as its two values."""


def depth_title(depth: Depth) -> str:
    """What `dataset.depth` says, in words: `reject`, `scale` or `window 0 to 4,095`."""
    return depth if isinstance(depth, str) else f"window {depth[0]:,} to {depth[1]:,}"


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
    channels: int = 3
    """3: red, green, blue; 1: gray."""
    depth: Depth = "reject"
    """How 16 bits a channel become 0..255. Not of the network, but of the images that it is trained on."""

    def __post_init__(self) -> None:
        if isinstance(self.depth, list):  # JSON knows no tuples.
            object.__setattr__(self, "depth", tuple(self.depth))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return (self.height, self.width, self.channels)

    @property
    def title(self) -> str:
        """In words, for people."""
        how = {"stretch": "stretched", "crop": "cropped", "pad": "padded"}[self.fit]
        share = f" to {self.crop_share:g}" if self.fit == "crop" and self.crop_share < 1 else ""
        antialiased = ", antialiased" if self.antialias else ""
        gray = ", gray" if self.channels == 1 else ""
        depth = "" if self.depth == "reject" else f", 16 bits: {depth_title(self.depth)}"
        return f"{self.height}×{self.width} pixels, {how}{share}{antialiased}{gray}{depth}"

    def describe(self) -> dict[str, Any]:
        """All that decides how an image is seen, in JSON's own types; `ImageInput(**described)` is the same again."""
        return asdict(self)
