"""scikit-learn's handwritten digits (1,797 real images, UCI's optical recognition set) as PNG files, offline."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transfer.dataset.manifest import MISSING, Reject
from transfer.dataset.sources.base import Entry, Label

IMAGE_SIZE = 32
"""Side in pixels. The originals are 8×8; they are enlarged with Pillow's bicubic filter, which keeps strokes smooth."""


@dataclass(frozen=True)
class DigitsSource:
    """The digits, with classes `0` to `9`. Every machine makes the same bytes."""

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": "digits", "uri": "digits"}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        for key, png in _digits().items():
            yield Entry(key, key[0], len(png))

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        png = _digits().get(key)
        return Reject(key, MISSING, "there is no such digit") if png is None else png[: max_size_bytes + 1]

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return False


def write_digits(folder: Path) -> int:
    """Write the digits as image files in class folders, `<folder>/<digit>/<number>.png`. Returns their number."""
    for key, png in _digits().items():
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    return len(_digits())


@lru_cache(maxsize=1)
def _digits() -> dict[str, bytes]:
    """All digits as PNG, 1 MB together, by key and in the order of the keys."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = zip(digits.images, digits.target, strict=True)
    return dict(sorted((f"{label}/{number:04d}.png", _png(pixels)) for number, (pixels, label) in enumerate(images)))


def _png(pixels: Any) -> bytes:
    """Encode float64 [8, 8] in 0..16 as a gray PNG of 8 bits, IMAGE_SIZE a side."""
    from PIL import Image

    image = Image.fromarray((pixels * (255 / 16)).round().astype("uint8"))
    enlarged = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    enlarged.save(buffer, "PNG")
    return buffer.getvalue()
