"""One request for an object's bytes, or a range of them, and what its answer says about them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from transfer.errors import ObjectNotFoundError
from transfer.storage.s3_bucket import Bucket
from transfer.storage.s3_errors import ShortBodyError, status_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/")


@dataclass(frozen=True)
class Body:
    """What an answer brought."""

    data: bytes
    sha256: str | None
    """What the service keeps beside the object; None for objects of other programs."""
    content_range: str | None
    """What the answer says that `data` is of the object; None: all of it."""


def get(bucket: Bucket, name: str, byte_range: str | None = None) -> Body:
    """The object, or a range of it as HTTP writes it; no bytes where the object ends before the range begins.

    Raises ObjectNotFoundError, StorageError.
    """
    request: dict[str, Any] = {"Bucket": bucket.name, "Key": bucket.key(name)}
    if byte_range is not None:
        request["Range"] = byte_range

    def get_object() -> Body:
        answer = bucket.client.get_object(**request)
        data = answer["Body"].read()
        # botocore compares with Content-Length; a range also says in Content-Range what it is.
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
    """The error for an object that is not there."""
    return ObjectNotFoundError(
        f"There is no object {name} in {bucket.uri}.", advice="Check the name and the storage's uri."
    )


def sha256_in(metadata: dict[str, str]) -> str | None:
    """The digest kept beside an object; None where another program means something else by that key."""
    found = metadata.get("sha256", "")
    return found if _SHA256.fullmatch(found) else None


def _length_of(content_range: str) -> int | None:
    """Bytes in a range as HTTP writes it, `bytes 0-99/1234`."""
    found = _CONTENT_RANGE.match(content_range)
    return int(found.group(2)) - int(found.group(1)) + 1 if found else None
