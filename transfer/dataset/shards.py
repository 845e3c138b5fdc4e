"""Shards: which image goes into which shard, and the Parquet objects of the shards.

Rows are sorted by the SHA-256 of the images, which is a random order of classes, names and ages. Columns are stored
uncompressed (encoded images do not compress), without dictionaries and statistics, so that the same rows give the same
bytes. A row group holds about 1 MiB of images and can be read by itself (`row_groups.py`). Pages have checksums, for
readers of a few columns, which cannot verify the digest of the object.

Of byte-identical images with one label only one is stored: a copy that is given to test, else to validation, else to
train, else one without a given split; of several such copies the first in the source's order. Only with
`dataset.prefer` may copies be given to several splits. If copies have several labels, all of them are refused, because
no label is known to be right.

Which shards of the parent version stay, and which are written, is planned in `shard_plan.py`.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer.catalog import layout
from transfer.dataset.listing import CheckedColumns, Listing
from transfer.dataset.manifest import CONFLICTING_LABELS, DUPLICATE, Reject, Shard
from transfer.dataset.row_groups import Footers, write_row_groups
from transfer.dataset.splits import NONE_GIVEN, SPLITS, decide_splits
from transfer.errors import CorruptObjectError, DatasetError
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
GROUPED_SHARD_SCHEMA = SHARD_SCHEMA.append(pa.field("group", pa.string()))
"""Schema for datasets with groups; null for an image without a group."""
_STREAMED_ROWS = 64


def write_shard(store: Store, rows: Iterable[dict[str, Any]], *, split: str, grouped: bool = False) -> Shard:
    """Put rows (dicts of the schema's columns) as one shard, and return its description.

    `grouped`: whether the rows have a `group`. The shard is built in a temporary file; memory holds one row group.
    Raises StorageError.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-shard-") as folder:
        path = Path(folder) / "shard.parquet"
        row_groups = write_row_groups(path, rows, GROUPED_SHARD_SCHEMA if grouped else SHARD_SCHEMA)
        size_bytes = path.stat().st_size
        name, sha256 = put_content(store, layout.shard, path)
    count = sum(row_groups.rows)
    return Shard(name=name, sha256=sha256, split=split, rows=count, size_bytes=size_bytes, row_groups=row_groups)


def read_shard(store: Store, shard: Shard, *, columns: list[str] | None = None) -> pa.Table:
    """Read a whole shard and verify its digest. Returns a table with `shard.rows` rows, without the removed ones.

    It has the columns of SHARD_SCHEMA, or only those in `columns`: columns of text take ten times as long to decode as
    the images.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    columns = columns or SHARD_SCHEMA.names
    try:
        with store.open_verified(shard.name, shard.sha256) as file:
            table = pq.read_table(file, columns=columns)
    except pa.ArrowInvalid as error:
        raise _unreadable(store, shard, str(error)) from error
    _check_table(store, shard, table, columns, rows=shard.stored_rows)
    return _without(table, shard.removed)


def read_columns(store: Store, shard: Shard, columns: list[str]) -> pa.Table:
    """Read a few columns of a shard by ranges, without its images, and verify the checksums of their pages.

    Returns a table with `shard.rows` rows, without the removed ones. Raises CorruptObjectError, ObjectNotFoundError,
    StorageError.
    """
    with store.open(shard.name) as file:
        try:
            table = pq.read_table(file, columns=columns, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:  # Arrow raises these for damaged pages and footers.
            raise _unreadable(store, shard, str(error)) from error
    _check_table(store, shard, table, columns, rows=shard.stored_rows)
    return _without(table, shard.removed)


def read_row_group(store: Store, shard: Shard, group: int, *, columns: list[str], footers: Footers) -> pa.Table:
    """Read one row group of a shard by one request, and verify its digest. Removed rows are left out.

    A shard of an earlier release is read as a whole: it is one group. `footers`: of the shards that are read often.
    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    try:
        footer = footers.of(store, shard)
        if footer is None or shard.row_groups is None:
            return read_shard(store, shard, columns=columns)
        table = footer.read(store, shard, group, columns)
    except (pa.ArrowException, OSError, ValueError) as error:  # Arrow raises these for footers that are none.
        raise _unreadable(store, shard, str(error)) from error
    _check_table(store, shard, table, columns, rows=shard.row_groups.rows[group])
    first = sum(shard.row_groups.rows[:group])
    return _without(table, [row - first for row in shard.removed if first <= row < first + table.num_rows])


def read_rows(store: Store, shard: Shard, rows: range, *, columns: list[str]) -> pa.Table:
    """Read some rows of a shard, counted without the removed ones: all by one request, others by their row groups.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    if len(rows) == shard.rows:
        return read_shard(store, shard, columns=columns)
    ends = list(accumulate(shard.rows_of_groups))
    first, last = bisect_right(ends, rows.start), bisect_left(ends, rows.stop)
    footers = Footers()
    groups = range(first, last + 1)
    tables = [read_row_group(store, shard, group, columns=columns, footers=footers) for group in groups]
    return pa.concat_tables(tables).slice(rows.start - ends[first] + len(tables[0]), len(rows))


def stored_bytes(store: Store, shard: Shard) -> Iterator[tuple[str, bytes]]:
    """Digest and bytes of each stored image of a shard, also of removed ones, in order. Memory holds one row group.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    try:
        with store.open_verified(shard.name, shard.sha256) as file:
            for batch in pq.ParquetFile(file).iter_batches(_STREAMED_ROWS, columns=["sha256", "image"]):
                yield from zip(batch["sha256"].to_pylist(), batch["image"].to_pylist(), strict=True)
    except pa.ArrowInvalid as error:
        raise _unreadable(store, shard, str(error)) from error


def _check_table(store: Store, shard: Shard, table: pa.Table, columns: list[str], *, rows: int) -> None:
    if table.schema != pa.schema([GROUPED_SHARD_SCHEMA.field(name) for name in columns]) or table.num_rows != rows:
        raise _unreadable(store, shard, f"{table.num_rows} rows of {table.schema.names}")


def _without(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The other rows of a table, in slices: taking rows would copy their images."""
    if not rows:
        return table
    edges = pairwise([-1, *rows, table.num_rows])
    return pa.concat_tables([table.slice(before + 1, after - before - 1) for before, after in edges])


def _unreadable(store: Store, shard: Shard, found: str) -> CorruptObjectError:
    return CorruptObjectError(
        f"{shard.name} in {store.uri} does not read as a shard of {shard.stored_rows} rows: {found}.",
        advice="Restore it from a backup, or ingest under another dataset.name.",
    )


@dataclass(frozen=True)
class Images:
    """Accepted images, each once, sorted by digest."""

    rows: np.ndarray
    """int64 [n]: each image's row in the listing."""
    words: np.ndarray
    """uint64 [n, 4]: each image's SHA-256, as numbers with the same order."""
    labels: np.ndarray
    """int32 [n]: class index."""
    splits: np.ndarray
    """int8 [n]: index into SPLITS."""
    groups: np.ndarray
    """uint64 [n]: the hash of each image's group, as `group_hashes` gives it."""
    widths: np.ndarray
    heights: np.ndarray
    sizes_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def counts(self, classes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Images of each split and class."""
        table = np.zeros((len(SPLITS), len(classes)), np.int64)
        np.add.at(table, (self.splits, self.labels), 1)
        return {split: dict(zip(classes, map(int, row), strict=True)) for split, row in zip(SPLITS, table, strict=True)}


@dataclass(frozen=True)
class RecordedShard:
    """What a version has of a shard: `words` uint64 [n, 4], `labels` int32 [n], `groups` uint64 [n]."""

    shard: Shard
    words: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows in the shard's object, int64 [n]."""
        return self.shard.live_rows()


def unique_images(
    listing: Listing,
    checked: CheckedColumns,
    label_indices: np.ndarray,
    *,
    validation: float,
    test: float,
    may_straddle: bool = False,
) -> tuple[Images, list[Reject]]:
    """Select each image once, with its split. Also returns the rejects.

    `label_indices`: int32 [labels of the listing], the class index of each label. `validation`, `test`: shares that are
    drawn. Raises DatasetError for copies in several given splits, unless they `may_straddle`.
    """
    words = checked.words()
    rows = np.array(checked.rows, np.int64)
    labels = label_indices[listing.label_codes[rows]]
    given = listing.given.splits[rows]
    # Rows are the last sort key, so that copies stay in the source's order; before it, test first, then validation.
    order = np.lexsort((rows, -given, *words.T[::-1]))
    first_of_copies, copies = _find_copies(words[order])
    is_conflict = _has_several(labels[order], first_of_copies)[copies]
    if not may_straddle:
        _check_given_once(listing, rows[order][~is_conflict], copies[~is_conflict])
    is_first = np.zeros(len(order), bool)
    is_first[first_of_copies] = True

    rejects = list(_duplicates(listing, rows[order], first_of_copies[copies], ~is_first & ~is_conflict))
    rejects += _conflicts(listing, rows[order][is_conflict], copies[is_conflict])
    kept = order[is_first & ~is_conflict]
    given_of_kept = listing.given.part(rows[kept])
    return (
        Images(
            rows=rows[kept],
            words=words[kept],
            labels=labels[kept],
            splits=decide_splits(words[kept, 0], given_of_kept, validation=validation, test=test),
            groups=given_of_kept.group_hashes(),
            widths=np.array(checked.widths, np.int32)[kept],
            heights=np.array(checked.heights, np.int32)[kept],
            sizes_bytes=np.array(checked.sizes_bytes, np.int64)[kept],
        ),
        rejects,
    )


def _find_copies(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number sorted digests so that copies share a number: the index of the first of each number, and all numbers."""
    starts = np.ones(len(words), bool)
    starts[1:] = (words[1:] != words[:-1]).any(axis=1)
    return np.flatnonzero(starts), np.cumsum(starts) - 1


def _has_several(labels: np.ndarray, first_of_copies: np.ndarray) -> np.ndarray:
    if not len(labels):
        return np.zeros(0, bool)
    smallest = np.minimum.reduceat(labels, first_of_copies)
    several: np.ndarray = smallest != np.maximum.reduceat(labels, first_of_copies)
    return several


def _check_given_once(listing: Listing, rows: np.ndarray, copies: np.ndarray) -> None:
    """Raise DatasetError if copies are given several splits; `rows` are sorted by `copies`, and by split inside it."""
    splits = listing.given.splits[rows]
    is_given = splits[1:] != NONE_GIVEN
    places = np.flatnonzero((copies[1:] == copies[:-1]) & (splits[1:] != splits[:-1]) & is_given)
    if len(places):
        one, other = rows[places[0]], rows[places[0] + 1]
        count = len(np.unique(copies[places]))
        raise DatasetError(
            f"{count:,} image{' is' if count == 1 else 's are'} in several given splits: {listing.key(int(one))} in "
            f"{SPLITS[splits[places[0]]]} has the same bytes as {listing.key(int(other))} in "
            f"{SPLITS[splits[places[0] + 1]]}.",
            advice="Remove one of the copies, or set dataset.prefer: test, which keeps the one in test (else in "
            "validation).",
        )


def _duplicates(
    listing: Listing, rows: np.ndarray, first_places: np.ndarray, is_duplicate: np.ndarray
) -> Iterator[Reject]:
    for place in np.flatnonzero(is_duplicate):
        first_key = listing.key(int(rows[first_places[place]]))
        key = listing.key(int(rows[place]))
        yield Reject(key, DUPLICATE, f"the same bytes as {first_key}, which is kept")


def _conflicts(listing: Listing, rows: np.ndarray, copies: np.ndarray) -> Iterator[Reject]:
    """Refuse all copies, which have several labels; `rows` are sorted by `copies`."""
    for start, stop in pairwise([*np.flatnonzero(np.diff(copies, prepend=-1)), len(copies)]):
        refused = rows[start:stop]
        codes = listing.label_codes[refused]
        one, other = refused[codes.argmin()], refused[codes.argmax()]
        for row, code in zip(refused, codes, strict=True):
            contrary = int(one if code != codes.min() else other)
            yield Reject(
                listing.key(int(row)),
                CONFLICTING_LABELS,
                f"labeled {listing.labels[code]}; {listing.key(contrary)} has the same bytes and is labeled "
                f"{listing.labels[listing.label_codes[contrary]]}",
            )
