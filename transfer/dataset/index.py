"""The index of a dataset version: digests, labels, keys and groups of all its images, without the images.

It consists of parts, Parquet objects that list whole shards, one after the other. A new version takes over the parts of
its parent and adds one for its new shards. The new part absorbs the parts before it that have fewer than twice its
rows. So each part has at least twice the rows of the next one: there are few, and an image is written once for each
doubling at most. A part also lists shards that left the dataset since; once they are most of its rows, it is absorbed.
It lists all stored rows of a shard, and readers leave out those that a version removed.

Versions of earlier releases have no index. Their shards are looked into, and so are those of a damaged part.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from transfer.catalog import layout
from transfer.dataset.listing import as_words, binary_column, bytes_of_column
from transfer.dataset.manifest import Dataset, IndexPart, Shard
from transfer.dataset.shards import RecordedShard, read_columns
from transfer.dataset.splits import group_hashes
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import Store, put_content

logger = logging.getLogger(__name__)

INDEX_SCHEMA = pa.schema(
    [("sha256", pa.binary(32)), ("label", pa.int32()), ("key", pa.string()), ("group", pa.string())]
)
"""`group`: null for an image without a group, and if the shards of the dataset have no groups."""
READERS = 8
_SHARDS = b"shards"
"""Metadata of a part: `[[SHA-256 of the shard, rows], …]`, in the order of the rows."""
_GROUP_ROWS = 65_536
_BYTES_WORTH_A_SHARD = 8 * 1024**2
"""Bytes that a bucket sends in the time that looking into a shard takes, which is some ten requests."""


class ImageIndex:
    """What a version has of its shards, without the images. Safe to use from several threads.

    `columns`: of INDEX_SCHEMA. It is for whoever asks for a few shards after the other: the part that was read last is
    held.
    """

    def __init__(self, store: Store, dataset: Dataset, columns: Sequence[str]) -> None:
        self._store, self._dataset, self._columns = store, dataset, columns
        self._read_part = functools.lru_cache(maxsize=1)(lambda part: _read_part(store, part, columns))

    def tables(self, shards: Sequence[Shard]) -> list[pa.Table]:
        """A table for each of `shards`, without the rows that these say are removed.

        Raises CorruptObjectError, ObjectNotFoundError, StorageError.
        """
        store, dataset, columns = self._store, self._dataset, self._columns
        asked = {shard.sha256 for shard in shards}
        wanted = [(part, asked & {shard.sha256 for shard in listed}) for part, listed in _parts(dataset)]
        parts = [part for part, asked_of_part in wanted if _is_worth_reading(part, asked_of_part)]
        found: dict[str, pa.Table] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for tables in pool.map(self._read_part, parts):
                found |= {sha256: table for sha256, table in tables.items() if sha256 in asked}
            rest = [shard for shard in shards if shard.sha256 not in found]
            looked_into = pool.map(lambda shard: _look_into(store, dataset, shard, columns), rest)
            found |= zip((shard.sha256 for shard in rest), looked_into, strict=True)
        return [_live(store, shard, found[shard.sha256]) for shard in shards]


def read_images(
    store: Store, dataset: Dataset, columns: Sequence[str], shards: Sequence[Shard] | None = None
) -> list[pa.Table]:
    """What a version has of `shards`, by default of all of them: `ImageIndex.tables`, and what it raises."""
    return ImageIndex(store, dataset, columns).tables(dataset.shards if shards is None else shards)


def read_recorded(store: Store, dataset: Dataset | None) -> list[RecordedShard]:
    """What the shards of a version hold, as planning compares it; nothing of None. Raises as `read_images`."""
    if dataset is None:
        return []
    tables = read_images(store, dataset, ["sha256", "label", "group"])
    return [
        RecordedShard(
            shard,
            as_words(bytes_of_column(table["sha256"]), 32),
            table["label"].to_numpy(),
            group_hashes(table["group"].to_pylist()),
        )
        for shard, table in zip(dataset.shards, tables, strict=True)
    ]


def write_index(
    store: Store, shards: Sequence[Shard], *, new: Mapping[str, pa.Table], parent: Dataset | None
) -> tuple[IndexPart, ...]:
    """Put what is missing for the index of a new version, and return its parts.

    `shards`: of the new version, first those that stay of `parent`, in its order. `new`: rows of INDEX_SCHEMA of each
    other shard, by its SHA-256. Raises as `read_images`.
    """
    stay = {shard.sha256 for shard in shards}
    kept = [(part, [shard for shard in listed if shard.sha256 in stay]) for part, listed in _parts(parent)]
    kept = [(part, listed) for part, listed in kept if listed]
    rows = [sum(shard.stored_rows for shard in listed) for _, listed in kept]
    first_absorbed, absorbing = len(kept), sum(map(len, new.values()))
    for place in reversed(range(len(kept))):
        part = kept[place][0]
        if part.rows < 2 * absorbing or 2 * rows[place] < part.rows:
            absorbing += sum(rows[place:first_absorbed])
            first_absorbed = place
    parts = [part.model_copy(update={"shards": len(listed)}) for part, listed in kept[:first_absorbed]]
    rest = shards[sum(part.shards for part in parts) :]
    if rest:
        parts.append(_put_part(store, rest, new=new, parent=parent))
    return tuple(parts)


def _parts(dataset: Dataset | None) -> Iterator[tuple[IndexPart, list[Shard]]]:
    """The parts of a version's index, each with the shards that it lists."""
    if dataset is None:
        return
    start = 0
    for part in dataset.index:
        yield part, dataset.shards[start : start + part.shards]
        start += part.shards


def _is_worth_reading(part: IndexPart, asked: Collection[str]) -> bool:
    """Whether reading a part takes less than looking into the shards asked for."""
    return part.size_bytes <= len(asked) * _BYTES_WORTH_A_SHARD


def _read_part(store: Store, part: IndexPart, columns: Sequence[str]) -> dict[str, pa.Table]:
    """Rows of each shard that a part lists, by its SHA-256; nothing of a part that cannot be read."""
    try:
        with store.open_verified(part.name, part.sha256) as file:
            table = pq.read_table(file, columns=list(columns))
        listed = json.loads(table.schema.metadata[_SHARDS])
        table = table.replace_schema_metadata(None).cast(_schema(columns))
        ends = accumulate(rows for _, rows in listed)
        return {sha256: table.slice(end - rows, rows) for (sha256, rows), end in zip(listed, ends, strict=True)}
    except (CorruptObjectError, ObjectNotFoundError) as error:
        found = error.message
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        found = f"{part.name} in {store.uri} does not read as a part of an index: {error}."
    logger.warning("%s The shards that it lists are looked into instead.", found)
    return {}


def _look_into(store: Store, dataset: Dataset, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """The same rows from the shard itself, with removed ones."""
    table = read_columns(store, shard.whole, [name for name in columns if name != "group" or dataset.groups_in_shards])
    found = {name: table[name] for name in table.column_names}
    if "sha256" in found:
        digests = bytes.fromhex("".join(found["sha256"].to_pylist()))
        found["sha256"] = binary_column(digests, 32)
    if "group" in columns and "group" not in found:
        found["group"] = pa.nulls(len(table), pa.string())
    return pa.table([found[name] for name in columns], schema=_schema(columns))


def _schema(columns: Sequence[str]) -> pa.Schema:
    return pa.schema([INDEX_SCHEMA.field(name) for name in columns])


def _live(store: Store, shard: Shard, table: pa.Table) -> pa.Table:
    if len(table) != shard.stored_rows:
        raise CorruptObjectError(
            f"The index in {store.uri} lists {len(table)} images of {shard.name}, which has {shard.stored_rows}.",
            advice="Restore the dataset version from a backup, or ingest under another dataset.name.",
        )
    return table.take(shard.live_rows()) if shard.removed else table


def _put_part(
    store: Store, shards: Sequence[Shard], *, new: Mapping[str, pa.Table], parent: Dataset | None
) -> IndexPart:
    tables = dict(new)
    if parent is not None:
        known = [shard.whole for shard in shards if shard.sha256 not in new]
        read = read_images(store, parent, INDEX_SCHEMA.names, known)
        tables |= zip((shard.sha256 for shard in known), read, strict=True)
    listed = json.dumps([[shard.sha256, shard.stored_rows] for shard in shards])
    table = pa.concat_tables([tables[shard.sha256] for shard in shards])
    with TemporaryDirectory(prefix="transfer-index-") as folder:
        path = Path(folder) / "part.parquet"
        pq.write_table(
            table.replace_schema_metadata({_SHARDS: listed}),
            path,
            row_group_size=_GROUP_ROWS,
            # Digests do not compress, and are all different.
            compression={name: "none" if name == "sha256" else "zstd" for name in table.column_names},
            use_dictionary=["label", "group"],
            write_statistics=False,
        )
        name, sha256 = put_content(store, layout.index_part, path)
        size_bytes = path.stat().st_size
    return IndexPart(name=name, sha256=sha256, shards=len(shards), rows=len(table), size_bytes=size_bytes)
