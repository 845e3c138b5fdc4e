"""The parallel tasks of ingest: checking a batch of images, and building a shard. Images stay in the workers.

Both tasks read the images themselves. Only if a worker cannot reach the source do the bytes travel with the task.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

from transfer.config import DatasetConfig, Depth, StorageConfig
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.listing import Checked
from transfer.dataset.manifest import Reject, Shard
from transfer.dataset.refusals import RejectedImage, RejectReason
from transfer.dataset.shards import stored_bytes, write_shard
from transfer.dataset.sources import Source
from transfer.dataset.sources.base import store_of
from transfer.errors import CorruptObjectError, DatasetError
from transfer.storage import Store, sha256_hex


class ChangedError(DatasetError):
    """An image changed after it was checked."""


class Limits(NamedTuple):
    """Limits of the configuration that an image must keep."""

    max_pixels: int
    max_file_size_bytes: int
    transcode: bool
    background: str | None
    depth: Depth

    @classmethod
    def of(cls, config: DatasetConfig) -> Limits:
        """Take the limits out of a configuration."""
        return cls(
            config.max_pixels, config.max_file_size_bytes, config.transcode, config.background, config.image_depth
        )


class Candidate(NamedTuple):
    """An image to check, with its bytes if the worker cannot read them itself."""

    key: str
    size_bytes: int
    carried: bytes | Reject | None


class Row(NamedTuple):
    """An image to store, with its bytes if the worker cannot read them itself."""

    key: str
    label: int
    sha256: str
    width: int
    height: int
    group: str | None
    carried: bytes | Reject | None


@dataclass(frozen=True)
class ShardTask:
    """A shard to build. `grouped`: whether the images of the dataset are in groups.

    `sources`: the stored shards that have the images; none if they come from the source.
    """

    split: str
    rows: list[Row]
    grouped: bool
    sources: tuple[Shard, ...] = ()


def check_batch(batch: list[Candidate], *, source: Source, limits: Limits) -> list[Checked | Reject]:
    """Check images by decoding them. Returns one result for each image, in order. Raises StorageError."""
    return [_check(candidate, source, limits) for candidate in batch]


def _check(candidate: Candidate, source: Source, limits: Limits) -> Checked | Reject:
    key = candidate.key
    if candidate.size_bytes > limits.max_file_size_bytes:
        return Reject(
            key,
            RejectReason.TOO_LARGE_FILE.value,
            f"The file has {candidate.size_bytes:,} bytes; max_file_size_bytes is {limits.max_file_size_bytes:,}.",
        )
    data = candidate.carried
    if data is None:
        data = source.read(key, max_size_bytes=limits.max_file_size_bytes)
    if isinstance(data, Reject):
        return data
    outcome = check_image(data, key=key, **limits._asdict())
    if isinstance(outcome, RejectedImage):
        return Reject(key, outcome.reason.value, outcome.detail)
    digest = bytes.fromhex(sha256_hex(outcome.data))
    return Checked(digest, outcome.width, outcome.height, len(outcome.data))


def build_shard(task: ShardTask, *, source: Source, limits: Limits, storage: StorageConfig) -> Shard:
    """Read the images of a shard again and put the shard into storage.

    Raises ChangedError if an image changed after it was checked, CorruptObjectError if a stored shard is damaged,
    StorageError.
    """
    store = store_of(storage)
    images = _copied_images(task, store) if task.sources else _images_of_source(task.rows, source, limits)
    return write_shard(store, _with_images(task.rows, images), split=task.split, grouped=task.grouped)


def _with_images(rows: list[Row], images: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    for row, image in zip(rows, images, strict=True):
        stored = row._asdict() | {"image": image}
        del stored["carried"]
        yield stored


def _images_of_source(rows: list[Row], source: Source, limits: Limits) -> Iterator[bytes]:
    for row in rows:
        data = row.carried
        if data is None:
            data = source.read(row.key, max_size_bytes=limits.max_file_size_bytes)
        yield _image_as_checked(row, data, limits)


def _copied_images(task: ShardTask, store: Store) -> Iterator[bytes]:
    # Rows of shards are sorted by digest, and so are those of the task: a row group of each source is in memory.
    stored = heapq.merge(*(stored_bytes(store, shard) for shard in task.sources), key=itemgetter(0))
    for row in task.rows:
        image = next((image for sha256, image in stored if sha256 == row.sha256), None)
        if image is None or sha256_hex(image) != row.sha256:
            raise CorruptObjectError(
                f"The image {row.sha256} is in none of {', '.join(shard.name for shard in task.sources)}, which should "
                f"have it: {row.key} cannot be copied.",
                advice="Restore these shards from a backup, or ingest under another dataset.name.",
            )
        yield image


def _image_as_checked(row: Row, data: bytes | Reject, limits: Limits) -> bytes:
    if isinstance(data, bytes):
        if sha256_hex(data) == row.sha256:
            return data
        if limits.transcode or limits.background is not None:
            outcome = check_image(data, key=row.key, **limits._asdict())
            if isinstance(outcome, AcceptedImage) and sha256_hex(outcome.data) == row.sha256:
                return outcome.data
    found = f"now {data.detail}" if isinstance(data, Reject) else "its bytes are others"
    raise ChangedError(
        f"{row.key} changed between being checked and being stored: {found}. No version was made.",
        advice="Run the ingest again while nothing writes to the source.",
    )
