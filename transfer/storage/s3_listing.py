"""The objects of a bucket, page by page, in the order of their names.

What a log's latest entry is, and which versions exist, is read from listings: one that leaves something out, repeats
itself or never ends must not pass for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transfer.errors import StorageError
from transfer.storage.s3_bucket import Bucket
from transfer.storage.store import StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef, ObjectTypeDef


def objects(bucket: Bucket, prefix: str) -> Iterator[StoredObject]:
    """All objects whose name starts with `prefix`, sorted by name.

    Raises StorageError, also where the service does not list as S3 documents it.
    """
    last_key = ""
    next_page: str | None = None
    while True:
        page = _page(bucket, prefix, next_page)
        for item in page.get("Contents", []):
            # By code point, which is the order of the UTF-8 bytes, as S3 documents it.
            if item["Key"] <= last_key:
                raise _not_as_documented(bucket, prefix, f"{item['Key']!r} comes after {last_key!r}")
            last_key = item["Key"]
            # Consoles make empty objects that stand for folders.
            if not last_key.endswith("/"):
                yield StoredObject(bucket.name_of(last_key), item["Size"], _stamp_of(item))
        if not page.get("IsTruncated"):
            return
        next_page = page.get("NextContinuationToken")
        if not next_page:
            raise _not_as_documented(bucket, prefix, "a page says that more follow, and not where they begin")


def _page(bucket: Bucket, prefix: str, token: str | None) -> ListObjectsV2OutputTypeDef:
    request: dict[str, Any] = {"Bucket": bucket.name, "Prefix": bucket.key(prefix)}
    if token is not None:
        request["ContinuationToken"] = token
    return bucket.call("list", prefix or "everything", lambda: bucket.client.list_objects_v2(**request))


def _stamp_of(item: ObjectTypeDef) -> str:
    # Some services leave the ETag out.
    return f"{item['ETag']} {item['LastModified'].isoformat()}" if item.get("ETag") else ""


def _not_as_documented(bucket: Bucket, prefix: str, found: str) -> StorageError:
    return StorageError(
        f"{bucket.uri} at {bucket.endpoint} does not list {prefix or 'its objects'} as S3 does: {found}.",
        advice="Use a general purpose bucket of a service that knows ListObjectsV2; S3 Express directory buckets list "
        "without an order.",
    )
