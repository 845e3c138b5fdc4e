"""What storage holds of each prefix, read from listings and documents alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from transfer.activations.layout import (
    ROOT,
    Entry,
    content_name,
    description_name,
    entry_name,
    folder_of,
    read_entry,
)
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import Store, read_document

PARALLEL = 16
"""Small requests at once: a bucket answers each in some ten milliseconds."""
_OBJECT = re.compile(r"([0-9a-f]{64})\.(json|arrow)")
_PREFIX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Folder:
    """What there is of one prefix."""

    prefix: str
    """Its digest."""
    sizes: dict[str, int]
    """Bytes of each object, by its name in storage."""
    description: dict[str, Any] | None
    """None: there is one that does not read. Empty: there is none."""
    entries: dict[str, Entry | None]
    """By the SHA-256 of the image shard; None for one that does not read."""
    contents: frozenset[str]
    """SHA-256 of each content."""

    def contents_of(self, shards: Iterable[str]) -> set[str]:
        """SHA-256 of the contents that the entries of these shards name."""
        return {entry.sha256 for entry in map(self.entries.get, shards) if entry}

    def rows_of(self, shards: Iterable[str]) -> int:
        """Images of which these shards' entries say that their output is kept."""
        return sum(entry.rows for entry in map(self.entries.get, shards) if entry)

    def bytes_of(self, *, shards: Iterable[str] = (), contents: Iterable[str] = ()) -> int:
        """Bytes that the entries of these shards and these contents take."""
        names = [entry_name(self.prefix, shard) for shard in shards]
        names += [content_name(self.prefix, sha256) for sha256 in contents]
        return sum(self.sizes.get(name, 0) for name in names)

    @property
    def orphans(self) -> set[str]:
        """Contents that no entry names: of a lost race, or of a writer that was interrupted or is about to commit."""
        return set(self.contents - self.contents_of(self.entries))


def read_folders(store: Store) -> Iterator[Folder]:
    """What there is of every prefix, by digest. Raises StorageError."""
    sizes: dict[str, dict[str, int]] = {}
    for item in store.list(f"{ROOT}/"):
        prefix = item.name.split("/")[1]
        if _PREFIX.fullmatch(prefix):
            sizes.setdefault(prefix, {})[item.name] = item.size_bytes
    for prefix, found in sizes.items():
        yield _read(store, prefix, found)


def read_folder(store: Store, prefix: str) -> Folder:
    """What there is of one prefix. Raises StorageError."""
    return _read(store, prefix, {item.name: item.size_bytes for item in store.list(f"{folder_of(prefix)}/")})


def _read(store: Store, prefix: str, sizes: dict[str, int]) -> Folder:
    found = [_OBJECT.fullmatch(name.removeprefix(f"{folder_of(prefix)}/")) for name in sizes]
    named = {(match[1], match[2]) for match in found if match}
    shards = sorted(digest for digest, kind in named if kind == "json")
    entries: dict[str, Entry | None] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for found_entry in pool.map(lambda shard: _entry(store, prefix, shard), shards):
            entries.update(found_entry)
    return Folder(
        prefix=prefix,
        sizes=sizes,
        description=_description(store, prefix) if description_name(prefix) in sizes else {},
        entries=entries,
        contents=frozenset(digest for digest, kind in named if kind == "arrow"),
    )


def _entry(store: Store, prefix: str, shard: str) -> dict[str, Entry | None]:
    """The entry by its shard; nothing when it was removed since it was listed."""
    try:
        return {shard: read_entry(store, prefix, shard)}
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return {shard: None}


def _description(store: Store, prefix: str) -> dict[str, Any] | None:
    try:
        return read_document(store, description_name(prefix))
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return None
