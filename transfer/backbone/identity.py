"""SHA-256 of the files that a base is read from, so that a replaced file counts as another base.

Needs no TensorFlow: a driver names runs by it. What can only be known of a base by loading it (the weights behind
`imagenet`, a handle that tensorflow-hub resolves) `training/run.py` compares.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transfer.backbone.files import check_bounds, is_s3, open_at, saved_model_in
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.config.paths import is_model_file, path_here
from transfer.errors import BackboneError
from transfer.storage import Store, StoredObject, sha256_of_file

_FILE_SUFFIXES = (".keras", ".h5", ".tar.gz", ".tgz")
"""What names one object in a bucket; any other name is the prefix of a SavedModel."""
_SETTLED_NS = 2 * 10**9
"""A file that was changed less than this before it was read may change again within its clock's tick."""
_READ_SIZE_BYTES = 8 * 1024**2

_known: dict[tuple[object, ...], str] = {}
"""SHA-256 of what was read in this process, by all that changes with the content."""


def base_digests(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> dict[str, str]:
    """SHA-256 of what the keys `model` and `weights` name: of a file, or of all files of a SavedModel with their names.

    A key that names no file has no entry: a network of keras.applications, its weights `imagenet` or `none`, a handle
    that tensorflow-hub resolves. Neither has one whose file is not there: loading it says so. `storage` says how to
    reach `s3://` files. Raises BackboneError for a folder that is too large for one SavedModel, StorageError from S3.
    """
    named = {"model": config.model if is_model_file(config.model) else None, "weights": config.weights_file}
    digests = {key: _digest(name, storage) for key, name in named.items() if name is not None}
    return {key: digest for key, digest in digests.items() if digest is not None}


def base_identity(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> dict[str, Any]:
    """The section `base` for what is named by it: files by their SHA-256, for the same file has another path elsewhere.

    A permission is left out: `accept_head` decides whether a base is refused, and not what is learned on it. Raises
    what `base_digests` raises.
    """
    files = base_digests(config, storage=storage)
    return config.model_dump(mode="json", exclude={"accept_head"}) | {
        key: {"sha256": sha256} for key, sha256 in files.items()
    }


def _digest(name: str, storage: StorageConfig | None) -> str | None:
    if is_s3(name):
        return _digest_in_bucket(name, storage)
    if "://" in name:
        return None
    path = path_here(name)
    if path.is_file():
        return _sha256(path)
    return _of_folder(name, path) if saved_model_in(path) is not None else None


def _of_folder(name: str, folder: Path) -> str:
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for each in names:
            path = Path(parent, each)
            files[path.relative_to(folder).as_posix()] = path
        check_bounds(name, files=len(files), size_bytes=0)
    return combined_sha256((relative, _sha256(path)) for relative, path in files.items() if path.is_file())


def _sha256(path: Path) -> str:
    try:
        stamp = _stamp(path)
        if stamp in _known:
            return _known[stamp]
        started_ns = time.time_ns()
        digest = sha256_of_file(path)
        # `ctime` is the one time that nobody can set.
        settled = started_ns - path.stat().st_ctime_ns > _SETTLED_NS and _stamp(path) == stamp
    except OSError as error:
        raise BackboneError(f"{path} cannot be read: {error}.", advice="It is a file of the base network.") from error
    if settled:
        _known[stamp] = digest
    return digest


def _stamp(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return str(path.absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest_in_bucket(uri: str, storage: StorageConfig | None) -> str | None:
    if uri.endswith(_FILE_SUFFIXES):
        parent, _, name = uri.rpartition("/")
        store = open_at(parent, storage)
        # Listed, and not asked for alone: only a listing has the stamp. It begins with the name itself.
        first = next(iter(store.list(name)), None)
        return _object_sha256(store, first, storage) if first is not None and first.name == name else None
    store = open_at(uri, storage)
    items = list(store.list())
    check_bounds(uri, files=len(items), size_bytes=sum(item.size_bytes for item in items))
    return combined_sha256((item.name, _object_sha256(store, item, storage)) for item in items) if items else None


def _object_sha256(store: Store, item: StoredObject, storage: StorageConfig | None) -> str:
    stamp = (store.uri, storage and storage.endpoint_url, item.name, item.size_bytes, item.stamp)
    if stamp in _known:
        return _known[stamp]
    digest = hashlib.sha256()
    with store.open(item.name) as file:
        # Each read is a request: hashlib's own `file_digest` would make thirty times as many.
        while piece := file.read(_READ_SIZE_BYTES):
            digest.update(piece)
    # A service that says nothing that changes with the content is asked again.
    if item.stamp:
        _known[stamp] = digest.hexdigest()
    return digest.hexdigest()


def combined_sha256(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of several files, whatever order they come in: their relative names and the SHA-256 of each."""
    lines = sorted(f"{digest} {name}\n" for name, digest in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
