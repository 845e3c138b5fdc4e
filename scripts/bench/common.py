"""What the benches share: images, times and ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

CLASSES = 4
GRIDS = ((2, 3), (6, 8), (18, 24), (48, 64))
"""Of the random fields that images are made of, from coarse to fine; one for each class where classes differ."""


def write_jpegs(
    folder: Path, numbers: range, *, width: int = 320, height: int = 240, differing_share: float = 0.0
) -> None:
    """Write the images of these numbers, each always the same, into a folder for each class.

    Photographs would be better; smooth random fields with some texture compress and decode much like them. All of them
    look alike, or that share of them shows which class it belongs to, by how coarse it is; the others show any class.
    """
    from PIL import Image

    for number in numbers:
        random = np.random.default_rng(number)
        path = folder / f"class-{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        grid = (12, 16)
        if differing_share:
            shown = number if random.random() < differing_share else random.integers(CLASSES)
            grid = GRIDS[shown % CLASSES]
        field = Image.fromarray(random.integers(0, 256, (*grid, 3), dtype=np.uint8))
        smooth = np.asarray(field.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.integers(-12, 13, (height, width, 1), dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=85)


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(left, right, strict=True))
