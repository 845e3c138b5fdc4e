"""Transfer of objects from and to a bucket: whole, in ranges, and in parts."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from transfer.errors import ObjectNotFoundError, StorageError
from transfer.storage.s3_requests import Bucket, ShortBodyError, code_of, is_taken, no_conditional_writes, status_of
from transfer.storage.store import content_size, open_content

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/")


@dataclass(frozen=True)
class Body:
    """The body of a response."""

    data: bytes
    sha256: str | None
    """SHA-256 in the metadata of the object; None for objects of other programs."""
    content_range: str | None
    """Range of the object that `data` is, as HTTP writes it; None: the whole object."""


def get(bucket: Bucket, name: str, byte_range: str | None = None) -> Body:
    """Read an object, or a range of it as HTTP writes it; no bytes if the object ends before the range begins.

    Raises ObjectNotFoundError, StorageError.
    """
    request: dict[str, Any] = {"Bucket": bucket.name, "Key": bucket.key(name)}
    if byte_range is not None:
        request["Range"] = byte_range

    def get_object() -> Body:
        answer = bucket.client.get_object(**request)
        data = answer["Body"].read()
        # botocore compares the size with Content-Length; for a range compare it with Content-Range, too.
        content_range = answer.get("ContentRange")
        if content_range is not None and len(data) != _length_of(content_range):
            raise ShortBodyError(f"{len(data)} bytes arrived as {content_range}")
        return Body(data, sha256_in(answer["Metadata"]), content_range)

    try:
        return bucket.call("read", name, get_object, expected={404, 416})
    except ClientError as error:
        if status_of(error) == 416:
            return Body(b"", None, None)
        raise not_found(bucket, name) from error


def not_found(bucket: Bucket, name: str) -> ObjectNotFoundError:
    """The error for a missing object."""
    return ObjectNotFoundError(
        f"There is no object {name} in {bucket.uri}.", advice="Check the name and the storage's uri."
    )


def sha256_in(metadata: dict[str, str]) -> str | None:
    """The SHA-256 in the metadata of an object; None if another program uses this key for something else."""
    found = metadata.get("sha256", "")
    return found if _SHA256.fullmatch(found) else None


def _length_of(content_range: str) -> int | None:
    """Number of bytes in a range as HTTP writes it, `bytes 0-99/1234`."""
    found = _CONTENT_RANGE.match(content_range)
    return int(found.group(2)) - int(found.group(1)) + 1 if found else None


CONDITION: dict[str, Any] = {"IfNoneMatch": "*"}
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 4


@dataclass(frozen=True)
class Sent:
    """The outcome of a conditional write.

    `created`: the service accepted it. `repeated`: the request was sent more than once, so a refusal may be due to an
    earlier attempt of our own whose response was lost.
    """

    created: bool
    repeated: bool


def send_in_parts(
    bucket: Bucket, name: str, data: bytes | Path, *, sha256: str, part_size_bytes: int, conditional: bool
) -> Sent:
    """Upload an object in parts; `conditional` makes its completion put-if-absent.

    The parts of an upload that fails are removed if the service can be reached. Raises UnsafeStorageError if the
    service does not implement the condition, StorageError.
    """
    size = content_size(data)
    part_size = max(part_size_bytes, -(-size // _MOST_PARTS))
    key: dict[str, Any] = {"Bucket": bucket.name, "Key": bucket.key(name)}
    created = bucket.call(
        "begin to write", name, lambda: bucket.client.create_multipart_upload(**key, Metadata={"sha256": sha256})
    )
    upload = {**key, "UploadId": created["UploadId"]}

    def send_part(number: int) -> CompletedPartTypeDef:
        body = _part(name, data, start=(number - 1) * part_size, length=part_size, size=size)
        answer = bucket.call(
            f"write part {number} of",
            name,
            lambda: bucket.client.upload_part(**upload, PartNumber=number, Body=body),
        )
        return {"ETag": answer["ETag"], "PartNumber": number}

    with _aborted_unless_completed(bucket, upload) as outcome, ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        parts = list(pool.map(send_part, range(1, -(-size // part_size) + 1)))
        outcome.append(_complete(bucket, name, upload, parts, conditional=conditional))
    return outcome[0]


def _complete(
    bucket: Bucket, name: str, upload: dict[str, Any], parts: list[CompletedPartTypeDef], *, conditional: bool
) -> Sent:
    sent = 0

    def complete() -> bool:
        nonlocal sent
        sent += 1
        condition = CONDITION if conditional else {}
        try:
            bucket.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **condition)
        except ClientError as error:
            # After 409 the parts must be sent again. A missing upload was completed by an earlier attempt.
            if is_taken(error) or status_of(error) == 409 or (sent > 1 and code_of(error) == "NoSuchUpload"):
                return False
            raise
        return True

    try:
        return Sent(bucket.call("finish writing", name, complete, expected={501}), repeated=sent > 1)
    except ClientError as error:
        raise no_conditional_writes(bucket.uri) from error


@contextlib.contextmanager
def _aborted_unless_completed(bucket: Bucket, upload: dict[str, Any]) -> Iterator[list[Sent]]:
    outcome: list[Sent] = []
    try:
        yield outcome
    finally:
        if not any(sent.created for sent in outcome):
            with contextlib.suppress(ClientError, BotoCoreError):
                bucket.client.abort_multipart_upload(**upload)


def _part(name: str, data: bytes | Path, *, start: int, length: int, size: int) -> bytes:
    with open_content(data) as source:
        source.seek(start)
        body = source.read(length)
    if len(body) != min(length, size - start):
        raise StorageError(
            f"The file for {name} changed while it was being uploaded.", advice="Upload files that nothing writes to."
        )
    return body


# ruff: noqa: D102 - io.RawIOBase documents the methods.


# Small reads, for example of a file's header and footer, are served from one larger request.
_READ_AHEAD_BYTES = 256 * 1024


class RangeReader(io.RawIOBase):
    """A seekable file of `size` bytes over `fetch(start, length)`, which returns exactly `length` bytes."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._window_start = 0
        self._window = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        wanted = max(min(len(target), self._size - self._position), 0)
        if wanted == 0:
            return 0
        # Read all wanted bytes at once, because Arrow takes a short read for the end of the file.
        target[:wanted] = self._bytes(self._position, wanted)
        self._position += wanted
        return wanted

    def _bytes(self, start: int, length: int) -> bytes:
        if length >= _READ_AHEAD_BYTES:
            return self._fetch(start, length)
        offset = start - self._window_start
        if offset < 0 or offset + length > len(self._window):
            # Footers are read backwards from the end of the file, so near the end the window starts earlier.
            self._window_start = max(min(start, self._size - _READ_AHEAD_BYTES), 0)
            self._window = self._fetch(self._window_start, min(_READ_AHEAD_BYTES, self._size - self._window_start))
            offset = start - self._window_start
        return self._window[offset : offset + length]
