"""Row groups: the parts of a shard that are read by themselves, by one request each.

The footer of a Parquet file says where its row groups are. Here it also has the SHA-256 of each row group, and the
dataset version has the SHA-256 of the footer. So what is read is verified, whether it is the shard or a row group.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer.dataset.manifest import RowGroups, Shard
from transfer.storage import Store

ROW_GROUP_SIZE_BYTES = 1024**2
"""A row group is closed when its images reach this size. Smaller ones shuffle better. Larger ones need fewer requests,
each of which takes 2 ms of a CPU, as much as decoding four small photographs."""
FOOTERS_SIZE_BYTES = 64 * 1024**2
"""Room for the footers of about 2,000 shards of 64 MiB."""
_DIGESTS = b"transfer.row_group_sha256"
_DIGEST_SIZE = 64


def write_row_groups(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> RowGroups:
    """Write rows as a Parquet file, and describe its row groups. Memory holds one row group."""
    counts, digests = [], []
    with path.open("wb") as target:
        file = _HashedFile(target)
        writer = pq.ParquetWriter(
            file,
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        with writer:
            file.next_part()  # The first bytes, which say that it is Parquet, belong to no row group.
            for group in _grouped(rows):
                writer.write_table(pa.Table.from_pylist(group, schema), row_group_size=len(group))
                counts.append(len(group))
                digests.append(file.next_part()[1])
            writer.add_key_value_metadata({_DIGESTS: "".join(digests)})
        footer_size_bytes, footer_sha256 = file.next_part()
    return RowGroups(rows=tuple(counts), footer_size_bytes=footer_size_bytes, footer_sha256=footer_sha256)


def _grouped(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
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


class _HashedFile:
    """A file that Arrow writes to, which knows the digest of each part that was written."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self._size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def next_part(self) -> tuple[int, str]:
        """Size and SHA-256 of what was written since the last call."""
        part = self._size_bytes, self._digest.hexdigest()
        self._digest, self._size_bytes = hashlib.sha256(), 0
        return part


class Footer:
    """The footer of a shard with row groups."""

    def __init__(self, data: bytes) -> None:
        """Raises ArrowInvalid if it does not read as a footer."""
        self._metadata = pq.read_metadata(pa.BufferReader(data))
        self._digests = (self._metadata.metadata or {}).get(_DIGESTS, b"").decode()

    def read(self, store: Store, shard: Shard, group: int, columns: list[str]) -> pa.Table:
        """Read and verify one row group. Raises what `Store.open_verified` raises, and ArrowInvalid."""
        columns_of_group = self._metadata.row_group(group)
        first, last = columns_of_group.column(0), columns_of_group.column(columns_of_group.num_columns - 1)
        start, end = first.data_page_offset, last.data_page_offset + last.total_compressed_size
        sha256 = self._digests[group * _DIGEST_SIZE : (group + 1) * _DIGEST_SIZE]
        with store.open_verified(shard.name, sha256, start=start, length=end - start) as file:
            part = _PartOfFile(file.read_buffer(), start=start, file_size_bytes=shard.size_bytes)
            return pq.ParquetFile(pa.PythonFile(part, mode="r"), metadata=self._metadata).read_row_group(group, columns)


class Footers:
    """The footers of shards, each read once while they fit into `size_bytes`. Safe to use from several threads."""

    def __init__(self, size_bytes: int = FOOTERS_SIZE_BYTES) -> None:
        self._room_bytes = size_bytes
        # The bytes, because a parsed footer takes ten times their memory, and parsing takes a millisecond.
        self._footers: OrderedDict[str, bytes] = OrderedDict()
        self._changing = threading.Lock()
        # Threads that need the same footer wait for the first of them; those of other shards rarely share its lock.
        self._reading = [threading.Lock() for _ in range(64)]

    def of(self, store: Store, shard: Shard) -> Footer | None:
        """The footer of a shard; None for one of an earlier release, whose parts have no digests.

        Raises what `Store.open_verified` raises, and ArrowInvalid.
        """
        if shard.row_groups is None:
            return None
        size_bytes, sha256 = shard.row_groups.footer_size_bytes, shard.row_groups.footer_sha256
        with self._reading[hash(shard.sha256) % len(self._reading)]:
            data = self._kept(shard.sha256)
            if data is None:
                start = shard.size_bytes - size_bytes
                with store.open_verified(shard.name, sha256, start=start, length=size_bytes) as file:
                    data = file.read()
                self._keep(shard.sha256, data)
        return Footer(data)

    def _kept(self, shard: str) -> bytes | None:
        with self._changing:
            data = self._footers.get(shard)
            if data is not None:
                self._footers.move_to_end(shard)
            return data

    def _keep(self, shard: str, data: bytes) -> None:
        with self._changing:
            self._footers[shard] = data
            self._room_bytes -= len(data)
            while self._room_bytes < 0:
                _, oldest = self._footers.popitem(last=False)
                self._room_bytes += len(oldest)


class BinaryColumn:
    """A column of bytes, read by row. For values of 20 KB, Arrow's own `take` takes twenty times as long."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = []
        for chunk in column.chunks:
            _, offsets, data = chunk.buffers()
            own_offsets = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            self._chunks.append((own_offsets.tolist(), memoryview(data)))
        self._starts = list(accumulate((len(chunk) for chunk in column.chunks), initial=0))

    def __getitem__(self, row: int) -> bytes:
        index = bisect_right(self._starts, row) - 1
        offsets, data = self._chunks[index]
        place = row - self._starts[index]
        return bytes(data[offsets[place] : offsets[place + 1]])


class _PartOfFile:
    """A part of a file, at its place, for readers that seek in the whole file."""

    closed = False

    def __init__(self, part: pa.Buffer, *, start: int, file_size_bytes: int) -> None:
        self._part = part
        self._start = start
        self._file_size_bytes = file_size_bytes
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._file_size_bytes)[whence]
        return self._position

    def read_buffer(self, length: int) -> pa.Buffer:
        """Without a copy; Arrow calls it in place of `read`. Raises ValueError outside of the part."""
        place = self._position - self._start
        if place < 0 or place + length > self._part.size:
            raise ValueError(f"bytes {self._position} to {self._position + length} are not in the row group")
        self._position += length
        return self._part.slice(place, length)

    def close(self) -> None:
        """Nothing to close."""
