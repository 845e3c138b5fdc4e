"""A bit of a stored object is another one, as disks and networks make it now and then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def flipped(path: Path, position: int, bit: int) -> Iterator[None]:
    """The file with one bit of one byte turned over, until the block ends."""
    byte = path.read_bytes()[position]
    _write(path, position, byte ^ (1 << bit))
    try:
        yield
    finally:
        _write(path, position, byte)


def sampled(path: Path, count: int, *, seed: int = 0) -> Iterator[tuple[int, int]]:
    """Positions and bits, half of them anywhere, half near the end, where formats keep what all hangs on."""
    choose, size = random.Random(seed), path.stat().st_size
    for number in range(count):
        first = 0 if number % 2 else max(size - 2048, 0)
        yield choose.randrange(first, size), choose.randrange(8)


def _write(path: Path, position: int, byte: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))
