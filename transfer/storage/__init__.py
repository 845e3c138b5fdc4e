"""Durable objects in a folder or an S3 bucket: created once, never overwritten, checked by digest when read."""

from transfer.storage.address import open_store
from transfer.storage.documents import as_model, put_content, put_document, read_document
from transfer.storage.log import Log
from transfer.storage.probe import probe, throughput
from transfer.storage.retry import RetryPolicy
from transfer.storage.store import Store, StoredObject, sha256_hex, sha256_of_file

__all__ = [
    "Log",
    "RetryPolicy",
    "Store",
    "StoredObject",
    "as_model",
    "open_store",
    "probe",
    "put_content",
    "put_document",
    "read_document",
    "sha256_hex",
    "sha256_of_file",
    "throughput",
]
