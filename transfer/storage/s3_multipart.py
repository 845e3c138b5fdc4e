"""Large objects in parts: several on their way at once, each repeated for itself, shown only when all are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from transfer.errors import StorageError
from transfer.storage.s3_bucket import Bucket
from transfer.storage.s3_errors import code_of, is_taken, no_conditional_writes, status_of
from transfer.storage.store import content_size, open_content

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

CONDITION: dict[str, Any] = {"IfNoneMatch": "*"}
_MOST_PARTS = 10_000
_PARTS_AT_ONCE = 4


@dataclass(frozen=True)
class Sent:
    """What became of a conditional write.

    `created`: the service took it. `repeated`: it was sent more than once, so a refusal may be due to an earlier
    attempt of our own whose answer was lost.
    """

    created: bool
    repeated: bool


def send_in_parts(
    bucket: Bucket, name: str, data: bytes | Path, *, sha256: str, part_size_bytes: int, conditional: bool
) -> Sent:
    """Upload an object in parts; `conditional` makes its completion put-if-absent.

    Parts of an upload that does not complete are removed, where the service can be reached. Raises UnsafeStorageError
    where the service does not know the condition, StorageError.
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
            # After 409 the parts have to be sent again. An upload that is gone was completed by an earlier attempt.
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
