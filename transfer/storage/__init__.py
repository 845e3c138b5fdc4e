"""Durable objects in a folder or an S3 bucket: created once, never overwritten, checked by digest when read."""

from transfer.storage.address import cache_home, open_store
from transfer.storage.documents import Log, as_model, now_utc, put_content, put_document, read_document
from transfer.storage.probe import probe
from transfer.storage.s3_requests import RetryPolicy
from transfer.storage.store import PARALLEL, Store, StoredObject, remove_in_steps, sha256_hex, sha256_of_file

__all__ = [
    "PARALLEL",
    "Log",
    "RetryPolicy",
    "Store",
    "StoredObject",
    "as_model",
    "cache_home",
    "now_utc",
    "open_store",
    "probe",
    "put_content",
    "put_document",
    "read_document",
    "remove_in_steps",
    "sha256_hex",
    "sha256_of_file",
]
