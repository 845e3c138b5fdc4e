"""How cached features lie in storage. Reading names and documents needs no TensorFlow.

The content's name has its digest, so that every byte is verified before use, and the shard that it belongs to, so that
a listing says what is cached. Two workers may compute the same shard with different rounding: the first one's entry
counts, the other's content is an orphan that `gc` finds. Contents of earlier releases are named by their digest alone,
and image shards with the same pixels and labels share one.

The content is an Arrow IPC file, uncompressed, whose record batches all have the same number of rows but the last one:
a memory map gives any row without reading the others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal

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

    format: Literal[1, 2] = 1
    """1: of an earlier release, and so the content's name."""
    sha256: str
    """Of the content."""
    rows: int
    size_bytes: int

    def content(self, frozen_part: str, shard_sha256: str) -> str:
        """Name of the content that it gives an image shard."""
        if self.format == 1:
            return layout.earlier_features_content(frozen_part, self.sha256)
        return layout.features_content(frozen_part, shard_sha256, self.rows, self.sha256)


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
    """Names of all contents."""

    def contents_of(self, shards: Iterable[str]) -> set[str]:
        """Names of the contents that the entries of these shards say."""
        return {entry.content(self.digest, shard) for shard in shards if (entry := self.entries.get(shard))}

    def rows_of(self, shards: Iterable[str]) -> int:
        """Images whose features are cached, as the entries of these shards say."""
        return sum(entry.rows for entry in map(self.entries.get, shards) if entry)

    def bytes_of(self, *, shards: Iterable[str] = (), contents: Iterable[str] = ()) -> int:
        """Bytes that the entries of these shards and these contents take."""
        names = [layout.features_entry(self.digest, shard) for shard in shards]
        return sum(self.sizes.get(name, 0) for name in [*names, *contents])

    @property
    def orphans(self) -> set[str]:
        """Contents that no entry names: of a lost race, or of a writer that was interrupted or is about to commit."""
        return set(self.contents - self.contents_of(self.entries))


def read_folders(store: Store, *, reads_entries: bool = False) -> Iterator[Folder]:
    """The cached features of every frozen part. Raises StorageError.

    Entries are read only where their names do not tell what they say, unless `reads_entries`.
    """
    sizes: dict[str, dict[str, int]] = {}
    for item in store.list(f"{layout.FEATURES}/"):
        digest = layout.below(layout.FEATURES, item.name)[0]
        if _DIGEST.fullmatch(digest):
            sizes.setdefault(digest, {})[item.name] = item.size_bytes
    for digest, found in sizes.items():
        yield _read(store, digest, found, reads_entries=reads_entries)


def read_folder(store: Store, digest: str) -> Folder:
    """The cached features of one frozen part, by its digest. Raises StorageError."""
    objects = store.list(f"{layout.features_folder(digest)}/")
    return _read(store, digest, {item.name: item.size_bytes for item in objects}, reads_entries=False)


def _read(store: Store, digest: str, sizes: dict[str, int], *, reads_entries: bool) -> Folder:
    shards = {shard for name in sizes if (shard := layout.features_entry_in(name))}
    entries: dict[str, Entry | None] = {} if reads_entries else {**told_by_names(sizes)}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for found_entry in pool.map(lambda shard: _entry(store, digest, shard), sorted(shards - entries.keys())):
            entries.update(found_entry)
    return Folder(
        digest=digest,
        sizes=sizes,
        description=_description(store, digest) if layout.features_description(digest) in sizes else {},
        entries=entries,
        contents=frozenset(name for name in sizes if layout.features_content_in(name)),
    )


def told_by_names(sizes: Mapping[str, int]) -> dict[str, Entry]:
    """What the entries say, by shard, as names and sizes of objects tell.

    Entries of earlier releases are not told, nor those of shards with several contents.
    """
    shards = {layout.features_entry_in(name) for name in sizes}
    contents = {name: content for name in sizes if (content := layout.features_content_in(name))}
    of_shard = Counter(content.shard_sha256 for content in contents.values())
    return {
        content.shard_sha256: Entry(format=2, sha256=content.sha256, rows=content.rows, size_bytes=sizes[name])
        for name, content in contents.items()
        if content.shard_sha256 in shards and content.shard_sha256 and content.rows
        if of_shard[content.shard_sha256] == 1
    }


def _entry(store: Store, digest: str, shard: str) -> dict[str, Entry | None]:
    """The entry by its shard; nothing when it was removed since it was listed."""
    try:
        return {shard: read_entry(store, digest, shard)}
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return {shard: None}


def _description(store: Store, digest: str) -> dict[str, Any] | None:
    """None if it is damaged."""
    try:
        return read_document(store, layout.features_description(digest))
    except ObjectNotFoundError:
        return {}
    except CorruptObjectError:
        return None


def read_description(store: Store, digest: str) -> dict[str, Any]:
    """What `frozen_part.json` says of a frozen part; nothing if it is damaged or gone. Raises StorageError.

    For whoever can do without: it only spares work, and cached features may be removed at any time.
    """
    return _description(store, digest) or {}


def shards_in(store: Store, digest: str) -> set[str]:
    """SHA-256 of each image shard for which a frozen part has an entry. One listing. Raises StorageError."""
    names = (item.name for item in store.list(f"{layout.features_folder(digest)}/"))
    return {shard for name in names if (shard := layout.features_entry_in(name))}
