"""The parallel tasks of ingest: checking a batch of images, and building a shard. Images stay in the workers.

Both tasks read the images themselves. Only if a worker cannot reach the source do the bytes travel with the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from transfer.config import DatasetConfig, Depth, StorageConfig
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.listing import Checked
from transfer.dataset.manifest import Reject, Shard
from transfer.dataset.refusals import RejectedImage, RejectReason
from transfer.dataset.shards import write_shard
from transfer.dataset.sources import Source
from transfer.dataset.sources.base import store_of
from transfer.errors import DatasetError
from transfer.storage import sha256_hex


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
    """A shard to build. `grouped`: whether the images of the dataset are in groups."""

    split: str
    rows: list[Row]
    grouped: bool


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

    Raises ChangedError if an image changed after it was checked, StorageError.
    """
    return write_shard(
        store_of(storage), _stored_rows(task.rows, source, limits), split=task.split, grouped=task.grouped
    )


def _stored_rows(rows: list[Row], source: Source, limits: Limits) -> Iterator[dict[str, Any]]:
    for row in rows:
        data = row.carried
        if data is None:
            data = source.read(row.key, max_size_bytes=limits.max_file_size_bytes)
        stored = row._asdict() | {"image": _image_as_checked(row, data, limits)}
        del stored["carried"]
        yield stored


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
