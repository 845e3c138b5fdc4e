"""From a storage configuration to an open store."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from urllib.parse import unquote

from transfer.config.models import StorageConfig
from transfer.config.paths import path_here
from transfer.errors import ConfigError
from transfer.storage.disk_cache import DiskCache
from transfer.storage.local import LocalStore
from transfer.storage.s3_requests import RetryPolicy
from transfer.storage.store import Store, check_prefix

_log = logging.getLogger("transfer.storage")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
_SUPPORTED = "Storage is a folder (a path or file:///path) or a bucket (s3://bucket/prefix)."
_CREDENTIALS = (
    "Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), a shared profile or an instance "
    "role. If this address was ever stored or sent, change the secret."
)


def open_store(config: StorageConfig, *, retry: RetryPolicy | None = None) -> Store:
    """Make the store that a configuration describes. Nothing is contacted or created yet.

    `retry`: how long transient errors of a bucket are retried; by default two minutes. Raises ConfigError for addresses
    that are not supported or that contain credentials.
    """
    uri = config.uri
    scheme = _SCHEME.match(uri)
    kind = scheme.group(1).lower() if scheme else ""
    rest = uri[scheme.end() :] if scheme else uri
    if kind == "s3":
        return _open_bucket(config, rest, retry or RetryPolicy())
    if kind == "file":
        return LocalStore(_folder_of_file_uri(rest), single_writer=config.single_writer)
    if kind:
        # The message omits the rest of the address, which may contain a password.
        raise ConfigError(f"storage.uri begins with {kind}://, which is not supported.", advice=_SUPPORTED)
    # An address with one slash, `s3:/bucket`, reads as a folder and arrives here as an absolute path.
    if any(part.lower().startswith(("s3:", "file:")) for part in Path(uri).parts):
        raise ConfigError(f"storage.uri is {uri}, a folder that looks like a mistyped address.", advice=_SUPPORTED)
    return LocalStore(Path(uri), single_writer=config.single_writer)


def _open_bucket(config: StorageConfig, rest: str, retry: RetryPolicy) -> Store:
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if "@" in bucket or ":" in bucket or "?" in rest:
        raise ConfigError("storage.uri holds more than a bucket and a prefix; credentials?", advice=_CREDENTIALS)
    endpoint = config.endpoint_url
    if endpoint is not None:
        if not re.match(r"^https?://", endpoint):
            raise ConfigError(
                "storage.endpoint_url does not begin with http:// or https://.", advice="For example http://minio:9000."
            )
        if "@" in endpoint or "?" in endpoint:
            raise ConfigError("storage.endpoint_url holds more than an address; credentials?", advice=_CREDENTIALS)
    if not _BUCKET.match(bucket):
        raise ConfigError(f"storage.uri names the bucket {bucket!r}, which cannot be one.", advice=_SUPPORTED)
    check_prefix(prefix)

    from transfer.storage.s3 import S3Store

    return S3Store(
        bucket,
        prefix,
        endpoint_url=endpoint,
        region=config.region,
        single_writer=config.single_writer,
        retry=retry,
        disk_cache=_disk_cache(config),
    )


def cache_home() -> Path:
    """This project's folder for what can be made again: `$XDG_CACHE_HOME/transfer`, or `~/.cache/transfer`.

    Raises ConfigError if this machine has no home.
    """
    return path_here(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "transfer"))


def _disk_cache(config: StorageConfig) -> DiskCache | None:
    if config.cache_size_bytes == 0:
        return None
    try:
        folder = path_here(config.cache_folder) if config.cache_folder else cache_home()
        # A subfolder has permissions of its own, and eviction meets no files of other programs there.
        folder /= "objects"
    except ConfigError as error:
        _log.warning("%s So nothing of %s is kept on it.", error.message, config.uri)
        return None
    return DiskCache(folder, max_size_bytes=config.cache_size_bytes)


def _folder_of_file_uri(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in {"", "localhost"} or not slash:
        raise ConfigError(
            "storage.uri is a file:// address on another host or without an absolute path.",
            advice="Write file:///absolute/path, or the plain path.",
        )
    return Path(unquote(slash + path))
