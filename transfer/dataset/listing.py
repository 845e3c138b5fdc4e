"""All images of a source, and what was found in them: columns, so that a million of them stay small.

An image takes its key's length and 32 bytes when it is listed, and 56 more when it is checked; planning doubles that
for a moment.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from transfer.dataset.rejects import Reject
from transfer.dataset.sources import Entry, Label, Source
from transfer.progress import progress

MARK_SIZE_BYTES = 16
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
    marks: np.ndarray
    """uint64 [n, 2]: a hash of key, size and stamp, by which an unchanged file is known again; 0 where the source gave
    no stamp."""
    labels: list[str]
    """Classes in the order of their first appearance, those without images included."""
    rejects: list[Reject]

    def __len__(self) -> int:
        return len(self.label_codes)

    def key(self, row: int) -> str:
        """Key of the image in that row."""
        key: str = self.keys[row].as_py()
        return key


def list_source(source: Source, *, renames: Mapping[str, str]) -> Listing:
    """Ask a source for all it has, and give labels their new names by `renames`; no image is checked."""
    chunks: list[pa.Array] = []
    keys: list[str] = []
    codes, sizes, marks = array("i"), array("q"), bytearray()
    code_of: dict[str, int] = {}
    rejects: list[Reject] = []
    with progress("list") as advance:
        for item in source.entries():
            if isinstance(item, Reject):
                rejects.append(item)
            elif isinstance(item, Label):
                code_of.setdefault(renames.get(item.name, item.name), len(code_of))
            else:
                keys.append(item.key)
                codes.append(code_of.setdefault(renames.get(item.label, item.label), len(code_of)))
                sizes.append(item.size_bytes)
                marks += _mark(item)
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
        marks=as_words(marks, MARK_SIZE_BYTES),
        labels=list(code_of),
        rejects=rejects,
    )


def _mark(entry: Entry) -> bytes:
    if not entry.stamp:
        return bytes(MARK_SIZE_BYTES)
    # A key has no character that does not print.
    text = f"{entry.key}\0{entry.size_bytes}\0{entry.stamp}"
    return hashlib.blake2b(text.encode(), digest_size=MARK_SIZE_BYTES).digest()


def as_words(digests: bytes | bytearray, size_bytes: int) -> np.ndarray:
    """Turn digests of that size, one behind the other, into numbers that sort like them: uint64 [n, size / 8]."""
    return np.frombuffer(digests, ">u8").reshape(-1, size_bytes // 8).astype(np.uint64)


def find_words(words: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of digests among sorted ones (uint64 [n, k] both), -1 where there is none.

    Looks up the first 64 bits and compares the rest. Of two digests that share those only one is found.
    """
    if not len(words):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(words[:, 0], wanted[:, 0]), len(words) - 1)
    places[(words[places] != wanted).any(axis=1)] = -1
    return places


def batches(sizes_bytes: np.ndarray, *, max_images: int, max_size_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut images of these sizes into runs [start, stop) of at most so many and, where sizes are known, bytes."""
    start, size_bytes = 0, 0
    for row, image_size_bytes in enumerate(sizes_bytes):
        size_bytes += max(int(image_size_bytes), 0)
        if row > start and (row - start == max_images or size_bytes > max_size_bytes):
            yield start, row
            start, size_bytes = row, max(int(image_size_bytes), 0)
    if start < len(sizes_bytes):
        yield start, len(sizes_bytes)


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
    """What was found in the images of a listing, in any order."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    """Which rows of the listing are accepted."""
    digests: bytearray = field(default_factory=bytearray)
    """32 bytes each."""
    widths: array[int] = field(default_factory=lambda: array("i"))
    heights: array[int] = field(default_factory=lambda: array("i"))
    sizes_bytes: array[int] = field(default_factory=lambda: array("q"))
    refused: dict[int, Reject] = field(default_factory=dict)
    """Those that are not, by their rows of the listing."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, outcome: Checked | Reject) -> None:
        """Add what was found in the image of a row of the listing."""
        if isinstance(outcome, Reject):
            self.refused[row] = outcome
            return
        self.rows.append(row)
        self.digests += outcome.sha256
        self.widths.append(outcome.width)
        self.heights.append(outcome.height)
        self.sizes_bytes.append(outcome.size_bytes)

    def words(self) -> np.ndarray:
        """Digests as numbers that sort like them: uint64 [n, 4]."""
        return as_words(self.digests, 32)
