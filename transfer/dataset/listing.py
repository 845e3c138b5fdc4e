"""All images of a source and the results of their check, in columns, which stay small for a million images.

A listed image takes the length of its key and 32 bytes, a checked image 56 bytes more. Planning doubles that for a
moment.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from transfer.dataset.manifest import DROPPED, FORGOTTEN, Reject
from transfer.dataset.sources import Entry, Label, Source
from transfer.dataset.splits import NONE_GIVEN, SPLITS, Given
from transfer.runtime.progress import progress

MARK_SIZE_BYTES = 16
_CHUNK = 16_384


@dataclass(frozen=True)
class Listing:
    """The images of a source, in its order, before any was read."""

    keys: pa.ChunkedArray
    """string [n]: keys."""
    label_codes: np.ndarray
    """int32 [n], indices into `labels`."""
    sizes_bytes: np.ndarray
    """int64 [n]: sizes in bytes; -1 if the source does not know the size without reading."""
    marks: np.ndarray
    """uint64 [n, 2]: hash of key, size and stamp, which identifies an unchanged file; 0 if the source gave no stamp."""
    labels: list[str]
    """Classes in the order of their first appearance, including classes without images."""
    rejects: list[Reject]
    given: Given
    """Splits and groups of the images, as far as the source gives them."""
    is_whole: bool = True
    """False if the listing ends at the requested number of files and the source has more."""

    def __len__(self) -> int:
        return len(self.label_codes)

    def key(self, row: int) -> str:
        """Key of the image in that row."""
        key: str = self.keys[row].as_py()
        return key

    def image_keys(self) -> Iterator[str]:
        """Keys of all images, in the order of the rows."""
        for chunk in self.keys.iterchunks():
            yield from chunk.to_pylist()


def list_source(
    source: Source,
    *,
    renames: Mapping[str, str],
    dropped: Mapping[str, str] | None = None,
    forgotten: Mapping[str, str] | None = None,
    group_pattern: str | None = None,
    most: int | None = None,
) -> Listing:
    """List all images of a source, with labels renamed by `renames`. No image is checked.

    `dropped`: classes (new names) whose images become rejects, with the reason for each. `forgotten`: keys that become
    rejects, with the reason for each. `group_pattern`: regular expression that finds the group of an image in its key.
    `most`: largest number of files to list.
    """
    dropped, forgotten = dropped or {}, forgotten or {}
    pattern = None if group_pattern is None else re.compile(group_pattern)
    chunks: list[pa.Array] = []
    keys: list[str] = []
    codes, sizes, marks = array("i"), array("q"), bytearray()
    splits, groups = array("b"), array("i")
    code_of: dict[str, int] = {}
    group_code_of: dict[str, int] = {}
    rejects: list[Reject] = []
    is_whole = True
    with progress("list", stays=False) as advance:
        for item in source.entries():
            if not isinstance(item, Label) and len(codes) + len(rejects) == most:
                is_whole = False
                break
            if isinstance(item, Reject):
                rejects.append(item)
                continue
            name = item.name if isinstance(item, Label) else item.label
            name = renames.get(name, name)
            if isinstance(item, Label):
                if name not in dropped:
                    code_of.setdefault(name, len(code_of))
            elif name in dropped:
                rejects.append(Reject(item.key, DROPPED, f"class {name} was dropped: {dropped[name]}"))
            elif item.key in forgotten:
                rejects.append(
                    Reject(item.key, FORGOTTEN, f"the image of this key was forgotten: {forgotten[item.key]}")
                )
            else:
                keys.append(item.key)
                codes.append(code_of.setdefault(name, len(code_of)))
                sizes.append(item.size_bytes)
                marks += _mark(item)
                splits.append(SPLITS.index(item.split) if item.split else NONE_GIVEN)
                group = item.group if pattern is None else _match(pattern, item.key)
                groups.append(group_code_of.setdefault(group, len(group_code_of)) if group else NONE_GIVEN)
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
        given=Given(np.array(splits, np.int8), np.array(groups, np.int32), list(group_code_of)),
        is_whole=is_whole,
    )


def _match(pattern: re.Pattern[str], key: str) -> str | None:
    """The text that the pattern's group matches in a key, or the whole match if the pattern has no group."""
    found = pattern.search(key)
    return found and found[pattern.groups]


def _mark(entry: Entry) -> bytes:
    if not entry.stamp:
        return bytes(MARK_SIZE_BYTES)
    # Keys contain only printable characters.
    text = f"{entry.key}\0{entry.size_bytes}\0{entry.stamp}"
    return hashlib.blake2b(text.encode(), digest_size=MARK_SIZE_BYTES).digest()


def as_words(digests: bytes | bytearray, size_bytes: int) -> np.ndarray:
    """Turn consecutive digests of `size_bytes` into numbers with the same order: uint64 [n, size_bytes / 8]."""
    return np.frombuffer(digests, ">u8").reshape(-1, size_bytes // 8).astype(np.uint64)


def binary_column(values: bytes, size_bytes: int) -> pa.Array:
    """Consecutive values of `size_bytes` each as a column."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(size_bytes), len(values) // size_bytes, [None, pa.py_buffer(values)]
    )


def bytes_of_column(column: pa.ChunkedArray) -> bytes:
    """All bytes of a column of `binary_column`, without an object for each row."""
    size: int = column.type.byte_width
    return b"".join(
        chunk.buffers()[1].slice(chunk.offset * size, len(chunk) * size).to_pybytes()
        for chunk in column.chunks
        if len(chunk)
    )


def find_words(words: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of digests among sorted digests (uint64 [n, k] both), -1 for a missing one.

    The first 64 bits are looked up and the rest is compared. If two digests share the first 64 bits, only one is found.
    """
    if not len(words):
        return np.full(len(wanted), -1)
    places = np.minimum(np.searchsorted(words[:, 0], wanted[:, 0]), len(words) - 1)
    places[(words[places] != wanted).any(axis=1)] = -1
    return places


def batches(sizes_bytes: np.ndarray, *, max_images: int, max_size_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut images into runs [start, stop) of at most `max_images` and `max_size_bytes`, as far as sizes are known."""
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
    """The result for one accepted image."""

    sha256: bytes
    """SHA-256 of the bytes to be stored."""
    width: int
    height: int
    size_bytes: int


@dataclass
class CheckedColumns:
    """Results for the images of a listing, in any order."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    """Rows of the accepted images in the listing."""
    digests: bytearray = field(default_factory=bytearray)
    """SHA-256 of the accepted images, 32 bytes each."""
    widths: array[int] = field(default_factory=lambda: array("i"))
    heights: array[int] = field(default_factory=lambda: array("i"))
    sizes_bytes: array[int] = field(default_factory=lambda: array("q"))
    refused: dict[int, Reject] = field(default_factory=dict)
    """Refused images, by their rows in the listing."""

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, outcome: Checked | Reject) -> None:
        """Add the result for the image in a row of the listing."""
        if isinstance(outcome, Reject):
            self.refused[row] = outcome
            return
        self.rows.append(row)
        self.digests += outcome.sha256
        self.widths.append(outcome.width)
        self.heights.append(outcome.height)
        self.sizes_bytes.append(outcome.size_bytes)

    def words(self) -> np.ndarray:
        """Digests as numbers with the same order: uint64 [n, 4]."""
        return as_words(self.digests, 32)

    def chosen(self, chosen: np.ndarray) -> CheckedColumns:
        """The results of some accepted images, bool [n], with those of all refused ones."""

        def part(column: array[int]) -> array[int]:
            return array(column.typecode, np.array(column)[chosen].tobytes())

        return CheckedColumns(
            rows=part(self.rows),
            digests=bytearray(np.frombuffer(self.digests, np.uint8).reshape(-1, 32)[chosen].tobytes()),
            widths=part(self.widths),
            heights=part(self.heights),
            sizes_bytes=part(self.sizes_bytes),
            refused=self.refused,
        )
