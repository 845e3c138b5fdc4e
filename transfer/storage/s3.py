"""Objects in a bucket of any S3 service: AWS, MinIO, Ceph and others.

The latest entry of a log and the existing versions are read from listings (`s3_listing.py`). So a listing that repeats
keys, has no order or never ends is refused.

The service itself decides put-if-absent (`If-None-Match: *`). Each object has its SHA-256 as metadata. It tells our own
write with a lost response from that of another writer, and a damaged body from an intact one.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, ObjectNotFoundError, StorageError, UnsafeStorageError
from transfer.storage.disk_cache import DiskCache
from transfer.storage.s3_listing import Listing
from transfer.storage.s3_requests import Bucket, RetryPolicy, is_taken, no_conditional_writes
from transfer.storage.s3_transfer import (
    CONDITION,
    RangeReader,
    Sent,
    get,
    not_found,
    send_in_parts,
    sha256_in,
)
from transfer.storage.store import (
    Store,
    StoredObject,
    check_prefix,
    check_probe_name,
    check_range,
    check_removable_name,
    check_replaceable_name,
    content_sha256,
    content_size,
    fetch_to_file,
    open_content,
    part_name,
    read_until_intact,
    sha256_hex,
)

# ruff: noqa: D102 - Store documents the methods.


_LARGEST_SINGLE_PUT_BYTES = 5 * 1024**3
_ROUNDS = 3


class S3Store(Store):
    """A store in `bucket` under `prefix`. Objects above `multipart_threshold_bytes` are sent in parts.

    `page_size`: keys that a request for a listing asks for.
    `disk_cache`: where `open_verified` caches objects on a local disk.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        single_writer: bool = False,
        retry: RetryPolicy | None = None,
        disk_cache: DiskCache | None = None,
        multipart_threshold_bytes: int = 32 * 1024**2,
        part_size_bytes: int = 16 * 1024**2,
        page_size: int = 1000,
    ) -> None:
        self._bucket = Bucket(bucket, prefix, endpoint_url=endpoint_url, region=region, retry=retry or RetryPolicy())
        self._listing = Listing(self._bucket, page_size)
        self.uri = self._bucket.uri
        self._single_writer = single_writer
        self._disk_cache = disk_cache
        self._multipart_threshold_bytes = multipart_threshold_bytes
        self._part_size_bytes = part_size_bytes
        self._parts_are_conditional: bool | None = None  # None: not probed yet.

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        layout.check_name(name)
        check_range(start, length)
        if start > 0 or length is not None:
            return self._read_range(name, start, length)
        body = get(self._bucket, name)
        if body.sha256 is None or sha256_hex(body.data) == body.sha256:
            return body.data
        return read_until_intact(lambda: get(self._bucket, name).data, name=name, uri=self.uri, sha256=body.sha256)

    def open(self, name: str) -> pa.NativeFile:
        size = self.size(name)
        return pa.PythonFile(RangeReader(lambda start, length: self._read_range(name, start, length), size), mode="r")

    def open_verified(self, name: str, sha256: str, *, start: int = 0, length: int | None = None) -> pa.NativeFile:
        layout.check_name(name)
        check_range(start, length)

        def fetch(position: int, size: int) -> bytes:
            return self._read_range(name, start + position, size)

        def download(path: Path) -> None:
            read_until_intact(
                lambda: fetch_to_file(fetch, self.size(name) if length is None else length, path),
                name=part_name(name, start, length),
                uri=self.uri,
                sha256=sha256,
            )

        kept = self._disk_cache.open(sha256, download) if self._disk_cache else None
        return super().open_verified(name, sha256, start=start, length=length) if kept is None else kept

    def size(self, name: str) -> int:
        size, _ = self._head(name)
        return size

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        check_prefix(prefix)
        yield from self._listing.objects(prefix)

    def folders(self, folder: str = "") -> Iterator[str]:
        prefix = f"{folder}/" if folder else ""
        check_prefix(prefix)
        for name in self._listing.folders(prefix):
            yield name.removeprefix(prefix).removesuffix("/")

    def newest_entry(self, log: str) -> int:
        return self._listing.newest_entry(layout.check_name(log))

    def put(self, name: str, data: bytes | Path) -> bool:
        layout.check_name(name)
        sha256, size = content_sha256(data), content_size(data)
        in_parts = size > self._multipart_threshold_bytes
        repeated = False
        for _ in range(_ROUNDS):
            # Looking first saves sending an existing object again. Without conditional writes it is the only check.
            if in_parts or self._single_writer:
                same = self._is_same(name, sha256, size)
                if same is not None:
                    return self._settled(name, same=same, created=repeated)
            sent = self._send_large(name, data, sha256, size) if in_parts else self._send(name, data, sha256)
            if sent.created:
                return True
            repeated = repeated or sent.repeated
            same = self._is_same(name, sha256, size)
            if same is not None:
                return self._settled(name, same=same, created=repeated)
            # The name was refused as taken, and no object is there: the other writer failed. Try again.
        raise StorageError(
            f"{self.uri} refused {name} as taken {_ROUNDS} times, and has no object of that name.",
            advice="Check the service; a bucket with replication or many writers may need longer.",
        )

    def create(self, name: str, data: bytes) -> bool:
        return self._send_once(layout.check_name(name), data, sha256_hex(data), CONDITION).created

    def replace(self, name: str, data: bytes | Path) -> None:
        check_replaceable_name(name)
        sha256, size = content_sha256(data), content_size(data)
        if size <= self._multipart_threshold_bytes:
            self._send_once(name, data, sha256, {})
            return
        part_size = self._part_size_bytes
        sent = send_in_parts(self._bucket, name, data, sha256=sha256, part_size_bytes=part_size, conditional=False)
        # If the response to a completion is lost, the retry is refused although the object was written.
        if not sent.created and not self._is_same(name, sha256, size):
            raise StorageError(
                f"{self.uri} did not take {name}: another writer was at work on it.", advice="Run it again."
            )

    def discard(self, probe_name: str) -> None:
        key = self._bucket.key(check_probe_name(probe_name))
        with contextlib.suppress(ClientError, BotoCoreError):
            self._bucket.client.delete_object(Bucket=self._bucket.name, Key=key)

    def remove(self, name: str) -> None:
        key = self._bucket.key(check_removable_name(name))
        with contextlib.suppress(ClientError):  # For a missing object most services answer 204, some 404.
            self._bucket.call(
                "remove",
                name,
                lambda: self._bucket.client.delete_object(Bucket=self._bucket.name, Key=key),
                expected={404},
            )

    def _read_unverified(self, name: str) -> bytes:
        return get(self._bucket, name).data

    def _read_range(self, name: str, start: int, length: int | None) -> bytes:
        if length == 0:
            self.size(name)  # An empty range of a missing object is still an error.
            return b""
        body = get(self._bucket, name, f"bytes={start}-{'' if length is None else start + length - 1}")
        if body.content_range is not None:
            return body.data
        # A service may ignore the range and send everything.
        return body.data[start:] if length is None else body.data[start : start + length]

    def _head(self, name: str) -> tuple[int, str | None]:
        key = self._bucket.key(layout.check_name(name))

        def head() -> tuple[int, str | None]:
            answer = self._bucket.client.head_object(Bucket=self._bucket.name, Key=key)
            return answer["ContentLength"], sha256_in(answer["Metadata"])

        try:
            return self._bucket.call("look at", name, head, expected={404})
        except ClientError as error:
            raise not_found(self._bucket, name) from error

    def _is_same(self, name: str, sha256: str, size: int) -> bool | None:
        """Whether the object with this name has this content; None if there is no such object."""
        try:
            size_there, sha256_there = self._head(name)
            if size_there == size and sha256_there is None:
                sha256_there = sha256_hex(get(self._bucket, name).data)
        except ObjectNotFoundError:
            return None
        return size_there == size and sha256_there == sha256

    def _send(self, name: str, data: bytes | Path, sha256: str) -> Sent:
        try:
            return self._send_once(name, data, sha256, CONDITION)
        except UnsafeStorageError:
            if not self._single_writer:
                raise
            return self._send_once(name, data, sha256, {})

    def _send_once(self, name: str, data: bytes | Path, sha256: str, condition: dict[str, Any]) -> Sent:
        sent = 0

        def put_object() -> bool:
            nonlocal sent
            sent += 1
            with open_content(data) as body:
                try:
                    self._bucket.client.put_object(
                        Bucket=self._bucket.name,
                        Key=self._bucket.key(name),
                        Body=body,
                        Metadata={"sha256": sha256},
                        **condition,
                    )
                except ClientError as error:
                    if is_taken(error):
                        return False
                    raise
            return True

        try:
            return Sent(self._bucket.call("write", name, put_object, expected={501}), repeated=sent > 1)
        except ClientError as error:
            raise no_conditional_writes(self.uri) from error

    def _send_large(self, name: str, data: bytes | Path, sha256: str, size: int) -> Sent:
        if self._parts_are_conditional is None:
            self._parts_are_conditional = self._probe_parts()
        if self._parts_are_conditional or self._single_writer:
            return send_in_parts(
                self._bucket,
                name,
                data,
                sha256=sha256,
                part_size_bytes=self._part_size_bytes,
                conditional=self._parts_are_conditional,
            )
        # Some services honor the condition only for objects that are sent in one request.
        if size > _LARGEST_SINGLE_PUT_BYTES:
            raise UnsafeStorageError(
                f"{self.uri} does not honor conditional completion of multipart uploads, and {name} is {size:,} bytes: "
                f"more than the {_LARGEST_SINGLE_PUT_BYTES:,} that can be sent in one piece.",
                advice="Store smaller objects, or use a service that honors it.",
            )
        return self._send(name, data, sha256)

    def _probe_parts(self) -> bool:
        """Whether the service refuses to complete a multipart upload under a name that is taken."""
        name = layout.probe(uuid.uuid4().hex)
        second = b"second\n"
        try:
            self.create(name, b"first\n")
            return not send_in_parts(
                self._bucket,
                name,
                second,
                sha256=sha256_hex(second),
                part_size_bytes=self._part_size_bytes,
                conditional=True,
            ).created
        except UnsafeStorageError:
            return False
        finally:
            self.discard(name)

    def _settled(self, name: str, *, same: bool, created: bool) -> bool:
        if not same:
            raise AlreadyExistsError(
                f"{name} in {self.uri} exists already, with other content.",
                advice="Another writer was first. Nothing is ever overwritten: use a new name or number.",
            )
        return created
