"""Reading all cached features, and comparing them with their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from transfer.catalog import layout
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.features.layout import (
    Entry,
    Folder,
    read_entry,
    read_folders,
    schema_for,
)
from transfer.runtime.progress import progress
from transfer.storage import PARALLEL, Store

_PIECE_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Damage:
    """An object that is not what it should be."""

    name: str
    found: str
    """What is wrong with it."""


@dataclass(frozen=True)
class Verification:
    """What was read, and what of it is damaged."""

    objects: int
    size_bytes: int
    damaged: tuple[Damage, ...]


def verify(store: Store, *, remove: bool = False) -> Verification:
    """Read all cached features, from the store itself rather than from this machine's copies, and check their digests.

    With `remove` the damaged objects are removed as they are found, and the entries that name them: they are computed
    again. Raises StorageError.
    """
    objects = size_bytes = 0
    damaged: list[Damage] = []
    with progress("verify", unit="objects") as advance:
        for folder in read_folders(store, reads_entries=True):
            for name, found in _check(store, folder, remove=remove):
                advance(1)
                if found:
                    damaged.append(Damage(name, found))
            objects += len(folder.sizes)
            size_bytes += sum(folder.sizes.values())
    return Verification(objects, size_bytes, tuple(damaged))


def _check(store: Store, folder: Folder, *, remove: bool) -> Iterator[tuple[str, str]]:
    """The name of each object, and what is wrong with it, if anything."""

    def check_entry(shard: str) -> tuple[str, str]:
        name = layout.features_entry(folder.digest, shard)
        found = _entry_fault(store, folder, shard)
        if found and remove:
            store.remove(name)
        return name, found

    def check_content(name: str) -> tuple[str, str]:
        found = _content_fault(store, folder, name)
        if found and remove:
            for shard in naming.get(name, []):
                store.remove(layout.features_entry(folder.digest, shard))
            store.remove(name)
        return name, found

    naming: dict[str, list[str]] = {}
    for shard, entry in folder.entries.items():
        if entry:
            naming.setdefault(entry.content(folder.digest, shard), []).append(shard)
    name = layout.features_description(folder.digest)
    if name in folder.sizes:
        is_damaged = folder.description is None
        if is_damaged and remove:
            store.remove(name)
        yield name, "its bytes do not match the SHA-256 that they carry" if is_damaged else ""
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(check_entry, folder.entries)
        yield from pool.map(check_content, sorted(folder.contents | naming.keys()))


def _entry_fault(store: Store, folder: Folder, shard: str) -> str:
    if folder.entries[shard] is not None:
        return ""
    try:
        read_entry(store, folder.digest, shard)
    except CorruptObjectError:
        return "it does not read as an entry, or its bytes do not match the SHA-256 that they carry"
    except ObjectNotFoundError:
        pass  # Discarded meanwhile by a job that noticed.
    return ""


def _content_fault(store: Store, folder: Folder, name: str) -> str:
    named = layout.features_content_in(name)
    try:
        # Read once more, since the transfer may have been at fault.
        if named is None or all(_digest(store, name) != named.sha256 for _ in range(2)):
            return "its bytes do not have the SHA-256 that is in its name"
        return _layout_fault(store, folder, name)
    except ObjectNotFoundError:
        return "an entry names it, and it is not there" if _is_named_now(store, folder, name) else ""


def _digest(store: Store, name: str) -> str:
    """SHA-256 of an object, in pieces: ranges never come from this machine's copies of a bucket."""
    digest = hashlib.sha256()
    size = store.size(name)
    for start in range(0, size, _PIECE_BYTES):
        digest.update(store.read(name, start=start, length=_PIECE_BYTES))
    return digest.hexdigest()


def _layout_fault(store: Store, folder: Folder, name: str) -> str:
    """What keeps intact bytes from being used: another layout than described, other rows than an entry says."""
    labels_only = pa.ipc.IpcReadOptions(included_fields=[1])
    try:
        with store.open(name) as file:
            schema = pa.ipc.open_file(file).schema
            if folder.description and {"shape", "dtype"} <= folder.description.keys():
                expected = schema_for(folder.description["shape"], folder.description["dtype"])
                if not schema.equals(expected, check_metadata=True):
                    return f"it does not hold features of shape {folder.description['shape']}"
            reader = pa.ipc.open_file(file, options=labels_only)
            rows = sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))
    except (pa.ArrowInvalid, IndexError) as error:
        return f"it does not read as an Arrow file: {error}"
    expected_rows = {entry.rows for _, entry in _naming(folder, name)}
    return f"it holds {rows} rows, expected {expected_rows.pop()}" if expected_rows - {rows} else ""


def _is_named_now(store: Store, folder: Folder, name: str) -> bool:
    """Whether an entry still names the content: a job may have discarded both."""
    for shard, entry in _naming(folder, name):
        with suppress(CorruptObjectError, ObjectNotFoundError):
            if read_entry(store, folder.digest, shard) == entry:
                return True
    return False


def _naming(folder: Folder, name: str) -> Iterator[tuple[str, Entry]]:
    """Shards and their entries that name a content."""
    for shard, entry in folder.entries.items():
        if entry and entry.content(folder.digest, shard) == name:
            yield shard, entry
