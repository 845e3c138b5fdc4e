"""SHA-256 of the files of a base, so that a replaced file counts as another base.

It needs no TensorFlow, because the driver derives ids of runs from it. Bases that are known only after loading (the
weights behind `imagenet`, a handle that tensorflow-hub resolves) are compared by `training/run.py`.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from transfer.backbone.files import check_bounds, is_preset, is_s3, open_at, saved_model_in
from transfer.config import BaseNetworkConfig, StorageConfig
from transfer.config.paths import is_model_file, path_here
from transfer.errors import BackboneError
from transfer.storage import Store, StoredObject, sha256_of_file

RANDOM_START = "none, normalised"
"""What ids have for `weights: none`, whose BatchNorms are normalised and trained."""
_FILE_SUFFIXES = (".keras", ".h5", ".tar.gz", ".tgz")
"""Suffixes of single objects in a bucket; any other name is the prefix of a SavedModel or preset."""
_SETTLED_NS = 2 * 10**9
"""A file that changed less than this before it was read may change again within the resolution of its times."""
_READ_SIZE_BYTES = 8 * 1024**2

_known: dict[tuple[object, ...], str] = {}
"""SHA-256 of the files that this process has read, by path or name, size and times or stamp."""


def base_digests(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> dict[str, str]:
    """SHA-256 of the files of the keys `model` and `weights`; for a SavedModel or preset of all files and their names.

    A key without a file has no entry: a network of keras.applications, its weights `imagenet` or `none`, a handle that
    tensorflow-hub resolves. A missing file has no entry either; loading it will raise the error. `storage`: how `s3://`
    files are reached. Raises BackboneError for a folder that is too large for a SavedModel, StorageError from S3.
    """
    named = {"model": config.model if is_model_file(config.model) else None, "weights": config.weights_file}
    digests = {key: _digest(name, storage) for key, name in named.items() if name is not None}
    return {key: digest for key, digest in digests.items() if digest is not None}


def base_identity(config: BaseNetworkConfig, *, storage: StorageConfig | None) -> dict[str, Any]:
    """The section `base` for ids, with the SHA-256 of files instead of their paths, which differ between machines.

    `accept_head` is left out: it decides whether a base is refused, not what is learned on it. Random weights are named
    after how they start: in earlier releases their BatchNorms had no statistics and were not trained. A module of
    `custom_objects` is named with its code, which decides what its layers compute. Raises what `base_digests` raises.
    """
    files = base_digests(config, storage=storage)
    named: dict[str, Any] = {key: {"sha256": sha256} for key, sha256 in files.items()}
    if config.weights == "none":
        named["weights"] = RANDOM_START
    if config.custom_objects is not None and (code := _code_of(config.custom_objects)):
        named["custom_objects"] = {"module": config.custom_objects, "sha256": _sha256(code)}
    return config.model_dump(mode="json", exclude={"accept_head"}) | named


def _code_of(module: str) -> Path | None:
    """The file of a module, which is not imported, because that would run its code; None if it is not found."""
    names, places, found = module.split("."), None, None
    for count in range(1, len(names) + 1):
        found = PathFinder.find_spec(".".join(names[:count]), places)
        if found is None:
            return None
        places = found.submodule_search_locations
    return Path(found.origin) if found and found.origin and Path(found.origin).is_file() else None


def _digest(name: str, storage: StorageConfig | None) -> str | None:
    if is_s3(name):
        return _digest_in_bucket(name, storage)
    if "://" in name:
        return None
    path = path_here(name)
    if path.is_file():
        return _sha256(path)
    is_base = saved_model_in(path) is not None or is_preset(name, storage)
    return _of_folder(name, path) if is_base else None


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
        # `ctime` is the only time that programs cannot set.
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
        # A listing, because only it has the stamp. The object with exactly this name comes first.
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
        # Each read is a request; hashlib's `file_digest` would make thirty times as many.
        while piece := file.read(_READ_SIZE_BYTES):
            digest.update(piece)
    # Without a stamp the object is read again each time.
    if item.stamp:
        _known[stamp] = digest.hexdigest()
    return digest.hexdigest()


def combined_sha256(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the relative names and digests of several files, independent of their order."""
    lines = sorted(f"{digest} {name}\n" for name, digest in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
