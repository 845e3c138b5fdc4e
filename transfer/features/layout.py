"""How cached features lie in storage. Reading names and documents needs no TensorFlow.

The content has its own digest for a name, so that every byte is verified before use. Two workers may compute the same
shard with different rounding: the first one's entry counts, the other's content is an orphan that `gc` finds. Two image
shards with the same pixels and labels under other keys have the same content.

The content is an Arrow IPC file, uncompressed, whose record batches all have the same number of rows but the last one:
a memory map gives any row without reading the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from transfer.catalog import layout
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import PARALLEL, Store, read_document

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Request:
    """The features of all images of a split, for a phase's `unfreeze`."""

    split: str
    unfreeze: int | str
    view: int | None = None
    """Which augmented view of the images it sees; None: the images as they are. Validation has no views."""


@dataclass(frozen=True)
class Extraction:
    """What was done to cache features. A shard counts once for each frozen part that was asked for."""

    images: int = 0
    """That went through the network or a part of it, each time that they did."""
    shards_found: int = 0
    """Cached already."""
    shards_computed: int = 0
    shards_resumed: int = 0
    """Of those computed: from cached features of an earlier cut instead of from pixels."""
    build_s: float = 0.0
    """Building the forward pass."""
    input_s: float = 0.0
    """Waiting for images to be read and decoded, or for cached rows. It goes on beside the forward pass."""
    forward_s: float = 0.0
    write_s: float = 0.0

    def __add__(self, other: Extraction) -> Extraction:
        names = [field.name for field in fields(self)]
        return Extraction(**{name: getattr(self, name) + getattr(other, name) for name in names})

    @staticmethod
    def sum(parts: Iterable[Extraction]) -> Extraction:
        """Everything that was done in several parts; seconds of parts at the same time add up, too."""
        return sum(parts, Extraction())


class Entry(BaseModel):
    """The document that says which content belongs to an image shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    """Of the content."""
    rows: int
    size_bytes: int


def read_entry(store: Store, digest: str, shard: str) -> Entry:
    """The entry for an image shard. Raises ObjectNotFoundError, CorruptObjectError when it does not read as one."""
    name = layout.features_entry(digest, shard)
    try:
        return Entry.model_validate(read_document(store, name))
    except ValidationError as error:
        raise CorruptObjectError(
            f"{name} in {store.uri} does not read as an entry of cached features: it has another format.",
            advice="Run `transfer cache verify --remove`; the features are computed again.",
        ) from error


def schema_for(shape: Sequence[int], dtype: str) -> pa.Schema:
    """Arrow schema of cached rows; the shape of a row stands in its metadata."""
    values = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), prod(shape))
    return pa.schema(
        [("features", values), ("label", pa.int32())], metadata={"shape": " ".join(str(side) for side in shape)}
    )


@dataclass(frozen=True)
class Folder:
    """The cached features of one frozen part, as a listing found them."""

    digest: str
    """Of the frozen part."""
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
        """Images whose features are cached, as the entries of these shards say."""
        return sum(entry.rows for entry in map(self.entries.get, shards) if entry)

    def bytes_of(self, *, shards: Iterable[str] = (), contents: Iterable[str] = ()) -> int:
        """Bytes that the entries of these shards and these contents take."""
        names = [layout.features_entry(self.digest, shard) for shard in shards]
        names += [layout.features_content(self.digest, sha256) for sha256 in contents]
        return sum(self.sizes.get(name, 0) for name in names)

    @property
    def orphans(self) -> set[str]:
        """Contents that no entry names: of a lost race, or of a writer that was interrupted or is about to commit."""
        return set(self.contents - self.contents_of(self.entries))


def read_folders(store: Store) -> Iterator[Folder]:
    """The cached features of every frozen part. Raises StorageError."""
    sizes: dict[str, dict[str, int]] = {}
    for item in store.list(f"{layout.FEATURES}/"):
        digest = layout.below(layout.FEATURES, item.name)[0]
        if _DIGEST.fullmatch(digest):
            sizes.setdefault(digest, {})[item.name] = item.size_bytes
    for digest, found in sizes.items():
        yield _read(store, digest, found)


def read_folder(store: Store, digest: str) -> Folder:
    """The cached features of one frozen part, by its digest. Raises StorageError."""
    objects = store.list(f"{layout.features_folder(digest)}/")
    return _read(store, digest, {item.name: item.size_bytes for item in objects})


def _read(store: Store, digest: str, sizes: dict[str, int]) -> Folder:
    shards = sorted({shard for name in sizes if (shard := layout.features_entry_in(name))})
    entries: dict[str, Entry | None] = {}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for found_entry in pool.map(lambda shard: _entry(store, digest, shard), shards):
            entries.update(found_entry)
    return Folder(
        digest=digest,
        sizes=sizes,
        description=_description(store, digest) if layout.features_description(digest) in sizes else {},
        entries=entries,
        contents=frozenset(sha256 for name in sizes if (sha256 := layout.features_content_in(name))),
    )


def _entry(store: Store, digest: str, shard: str) -> dict[str, Entry | None]:
    """The entry by its shard; nothing when it was removed since it was listed."""
    try:
        return {shard: read_entry(store, digest, shard)}
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return {shard: None}


def _description(store: Store, digest: str) -> dict[str, Any] | None:
    try:
        return read_document(store, layout.features_description(digest))
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return None
