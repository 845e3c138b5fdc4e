"""All images of a source, and what checking them found: columns, so that a million of them stay small.

An image takes its key's length and 16 bytes when it is listed, and 56 more when it is checked; planning doubles that
for a moment.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from transfer.dataset.rejects import Reject
from transfer.dataset.sources import Entry, Label, Source
from transfer.progress import progress

_CHUNK = 16_384


@dataclass(frozen=True)
class Listing:
    """The images of a source, in its order, before any was read."""

    keys: pa.ChunkedArray
    """string [n]"""
    label_codes: np.ndarray
    """int32 [n], indices into `labels`."""
    sizes_bytes: np.ndarray
    """int64 [n], -1 where the source does not know without reading."""
    labels: list[str]
    """Classes in the order of their first appearance, those without images included."""
    rejects: list[Reject]

    def __len__(self) -> int:
        return len(self.label_codes)

    def entries(self, start: int, stop: int) -> list[Entry]:
        """Rows `start` to `stop` as the source gave them."""
        keys = self.keys.slice(start, stop - start).to_pylist()
        labels = [self.labels[code] for code in self.label_codes[start:stop]]
        return [Entry(*row) for row in zip(keys, labels, self.sizes_bytes[start:stop].tolist(), strict=True)]


def list_source(source: Source) -> Listing:
    """Ask a source for all it has; no image is read."""
    chunks: list[pa.Array] = []
    keys: list[str] = []
    codes, sizes = array("i"), array("q")
    code_of: dict[str, int] = {}
    rejects: list[Reject] = []
    with progress("list") as advance:
        for item in source.entries():
            if isinstance(item, Reject):
                rejects.append(item)
            elif isinstance(item, Label):
                code_of.setdefault(item.name, len(code_of))
            else:
                keys.append(item.key)
                codes.append(code_of.setdefault(item.label, len(code_of)))
                sizes.append(item.size_bytes)
                if len(keys) == _CHUNK:
                    chunks.append(pa.array(keys, pa.string()))
                    keys = []
                    advance(_CHUNK)
        advance(len(keys))
    chunks.append(pa.array(keys, pa.string()))
    return Listing(
        keys=pa.chunked_array(chunks),
        label_codes=np.array(codes, np.int32),
        sizes_bytes=np.array(sizes, np.int64),
        labels=list(code_of),
        rejects=rejects,
    )


def batches(listing: Listing, *, max_images: int, max_size_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a listing into runs [start, stop) of at most so many images and, where sizes are known, bytes."""
    start, size_bytes = 0, 0
    for row, image_size_bytes in enumerate(listing.sizes_bytes):
        size_bytes += max(int(image_size_bytes), 0)
        if row > start and (row - start == max_images or size_bytes > max_size_bytes):
            yield start, row
            start, size_bytes = row, max(int(image_size_bytes), 0)
    if start < len(listing):
        yield start, len(listing)


@dataclass(frozen=True)
class Checked:
    """What was found in one image that is accepted."""

    sha256: bytes
    """Of the bytes to be stored."""
    width: int
    height: int
    size_bytes: int


@dataclass
class CheckedColumns:
    """What was found in all images of a listing that are accepted."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    """Which rows of the listing they are."""
    digests: bytearray = field(default_factory=bytearray)
    """32 bytes each."""
    widths: array[int] = field(default_factory=lambda: array("i"))
    heights: array[int] = field(default_factory=lambda: array("i"))
    sizes_bytes: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, checked: Checked) -> None:
        """Add the image of a row of the listing."""
        self.rows.append(row)
        self.digests += checked.sha256
        self.widths.append(checked.width)
        self.heights.append(checked.height)
        self.sizes_bytes.append(checked.size_bytes)

    def words(self) -> np.ndarray:
        """Digests as numbers that sort like them: uint64 [n, 4]."""
        return np.frombuffer(bytes(self.digests), ">u8").reshape(-1, 4).astype(np.uint64)
