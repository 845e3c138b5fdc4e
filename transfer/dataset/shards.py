"""Shards: Parquet objects of encoded images with their labels, named by the SHA-256 of their bytes.

Rows are sorted by the images' own SHA-256, which is a shuffle with respect to class, name and age. Columns are stored
uncompressed (encoded images do not compress), without dictionaries and statistics, so that the same rows give the same
bytes. A row group holds about 8 MiB of images: that much a reader or writer needs in memory at once. Pages carry
checksums, for those who read a few columns and cannot verify the object's digest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transfer.dataset.manifest import Shard
from transfer.errors import CorruptObjectError
from transfer.storage import Store, put_content

SHARD_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.binary()),
        ("label", pa.int32()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
ROW_GROUP_SIZE_BYTES = 8 * 1024**2


def write_shard(store: Store, rows: Iterable[dict[str, Any]], *, split: str) -> Shard:
    """Put rows (dicts of the schema's columns) as one shard, and return its description.

    The shard is built in a temporary file; memory holds one row group. Raises StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-shard-") as folder:
        path = Path(folder) / "shard.parquet"
        count = 0
        with pq.ParquetWriter(
            path,
            SHARD_SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            for group in _row_groups(rows):
                writer.write_table(pa.Table.from_pylist(group, SHARD_SCHEMA), row_group_size=len(group))
                count += len(group)
        size_bytes = path.stat().st_size
        name, sha256 = put_content(store, "shards", ".parquet", path)
    return Shard(name=name, sha256=sha256, split=split, rows=count, size_bytes=size_bytes)


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size_bytes = 0
    for row in rows:
        group.append(row)
        size_bytes += len(row["image"])
        if size_bytes >= ROW_GROUP_SIZE_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group


def read_shard(store: Store, shard: Shard, *, columns: list[str] | None = None) -> pa.Table:
    """Read a whole shard, its bytes verified by their digest: a table with `shard.rows` rows.

    It has the columns of SHARD_SCHEMA, or the named ones of them: making those of text costs ten times as much as
    making the images'.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    try:
        with store.open_verified(shard.name, shard.sha256) as file:
            table = pq.read_table(file, columns=columns)
    except pa.ArrowInvalid as error:
        raise _unreadable(store, shard, str(error)) from error
    _check_table(store, shard, table, columns or SHARD_SCHEMA.names)
    return table


def read_columns(store: Store, shard: Shard, columns: list[str]) -> pa.Table:
    """Read a few columns of a shard by ranges, without its images: verified by the checksums of their pages.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    with store.open(shard.name) as file:
        try:
            table = pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:  # Whatever a damaged page or footer leads Arrow to.
            raise _unreadable(store, shard, str(error)) from error
    _check_table(store, shard, table, columns)
    return table


def _check_table(store: Store, shard: Shard, table: pa.Table, columns: list[str]) -> None:
    if table.schema != pa.schema([SHARD_SCHEMA.field(name) for name in columns]) or table.num_rows != shard.rows:
        raise _unreadable(store, shard, f"{table.num_rows} rows of {table.schema.names}")


def _unreadable(store: Store, shard: Shard, found: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{shard.name} in {store.uri} does not read as a shard of {shard.rows} rows: {found}.",
        advice="Restore it from a backup, or ingest under another dataset.name.",
    )
