"""Results of an ingest for each file, so that the next ingest reads only files that changed.

An entry of a dataset's log names a table. The table has a row for each file whose change would show in the source's
listing. Only the latest entry counts. It only saves work: if it is missing or damaged, or of another source or check,
all files are read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from transfer.catalog import layout
from transfer.dataset.check import CHECK_VERSION
from transfer.dataset.listing import (
    MARK_SIZE_BYTES,
    CheckedColumns,
    Listing,
    as_words,
    binary_column,
    bytes_of_column,
    find_words,
)
from transfer.dataset.manifest import MISSING, UNREADABLE, Reject
from transfer.errors import AlreadyExistsError, CorruptObjectError, ObjectNotFoundError
from transfer.storage import Log, Store, put_content, sha256_hex, sha256_of_file

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the columns and of the marks."""
_SCHEMA = pa.schema(
    [
        ("mark", pa.binary(MARK_SIZE_BYTES)),
        ("sha256", pa.binary(32)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("size_bytes", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
# Permission and network errors are not cached: they can go away without the file's size or mtime changing.
_NOT_OF_THE_FILE = frozenset({MISSING, UNREADABLE})
_GROUP_ROWS = 65_536
_DECODERS = ("numpy", "pillow", "pillow-heif", "pillow-jxl-plugin", "tensorflow")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    check: str
    """Digest of the limits, the code and the packages on which the results depend."""
    files: str
    sha256: str


@dataclass(frozen=True)
class Seen:
    """Results for files, as columns that are sorted by mark."""

    marks: np.ndarray
    """uint64 [n, 2]: marks, as in a Listing."""
    digests: np.ndarray
    """uint8 [n, 32]: SHA-256 of the bytes to be stored, 0 for refused files."""
    widths: np.ndarray
    heights: np.ndarray
    sizes_bytes: np.ndarray
    refused: dict[int, tuple[str, str]]
    """Reason and detail of each refused file, by row."""

    def recall(self, listing: Listing) -> tuple[CheckedColumns, np.ndarray]:
        """What is known of the images of a listing, and the rows of those that must be read: int64 [k], rising."""
        places = find_words(self.marks, listing.marks)
        is_refused = np.isin(places, list(self.refused))
        checked = CheckedColumns()
        rows = np.flatnonzero((places >= 0) & ~is_refused)
        found = places[rows]
        checked.rows.frombytes(rows.tobytes())
        checked.digests += self.digests[found].tobytes()
        checked.widths.frombytes(self.widths[found].tobytes())
        checked.heights.frombytes(self.heights[found].tobytes())
        checked.sizes_bytes.frombytes(self.sizes_bytes[found].tobytes())
        for row in np.flatnonzero(is_refused).tolist():
            checked.add(row, Reject(listing.key(row), *self.refused[int(places[row])]))
        return checked, np.flatnonzero(places < 0)


def nothing_seen() -> Seen:
    """Results for no file."""
    return _from_table(_SCHEMA.empty_table())


@dataclass(frozen=True)
class SeenLog:
    """The entries of one dataset. Only entries of the same source and the same check are used."""

    store: Store
    name: str
    source: str
    check: str

    def read(self) -> Seen:
        """Read the results of the latest ingest and verify their digest; no results if they cannot be used.

        Raises StorageError.
        """
        try:
            entry = self._latest()
            if entry is None or (entry.source, entry.check) != (self.source, self.check):
                return nothing_seen()
            return _from_table(pq.read_table(pa.BufferReader(self.store.read_verified(entry.files, entry.sha256))))
        except (CorruptObjectError, ObjectNotFoundError) as error:
            logger.warning("What is known of the files of %s cannot be used, all are read again: %s", self.name, error)
            return nothing_seen()

    def recall(self, listing: Listing) -> tuple[CheckedColumns, np.ndarray]:
        """What is known of the images of a listing, and the rows of those that must be read. Raises StorageError."""
        return self.read().recall(listing)

    def add(self, listing: Listing, checked: CheckedColumns) -> None:
        """Store the results for the files of a listing, unless the latest entry equals them. Raises StorageError."""
        with TemporaryDirectory(prefix="transfer-seen-") as folder:
            path = Path(folder) / "seen.parquet"
            if not _write_parquet(path, listing, checked):
                return
            sha256 = sha256_of_file(path)
            entry = _Entry(source=self.source, check=self.check, files=layout.seen_files(sha256), sha256=sha256)
            with suppress(CorruptObjectError, ObjectNotFoundError):
                if self._latest() == entry and self.store.exists(entry.files):
                    return
            # Nothing is overwritten: a damaged table stays, with a warning each time, until files change.
            with suppress(AlreadyExistsError):
                put_content(self.store, layout.seen_files, path)
                self._log.append(entry.model_dump())

    @property
    def _log(self) -> Log:
        return Log(self.store, layout.seen_log(self.name))

    def _latest(self) -> _Entry | None:
        latest = self._log.latest()
        try:
            return None if latest is None else _Entry.model_validate(latest[1])
        except ValidationError as error:
            raise CorruptObjectError(
                f"The latest entry of {layout.seen_log(self.name)} is of another release."
            ) from error


def digest_of_check(limits: Mapping[str, object]) -> str:
    """Digest of everything on which the check of a file depends: the limits, the code, and the packages that decode."""
    deciding = {"format": FORMAT, "check": CHECK_VERSION, "limits": dict(limits), "packages": _versions()}
    return sha256_hex(json.dumps(deciding, sort_keys=True).encode())


def _versions() -> dict[str, str]:
    found = {}
    for package in _DECODERS:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _write_parquet(path: Path, listing: Listing, checked: CheckedColumns) -> int:
    """Write a row for each file with a mark, sorted by mark, row group by row group. Returns the number of rows."""
    refused = {row: reject for row, reject in checked.refused.items() if reject.reason not in _NOT_OF_THE_FILE}
    marks = listing.marks[np.concatenate([np.array(checked.rows, np.int64), np.array(list(refused), np.int64)])]
    order = np.lexsort(marks.T[::-1])
    order = order[marks[order].any(axis=1)]

    def column(of_accepted: np.ndarray) -> np.ndarray:
        return np.concatenate([of_accepted, np.zeros((len(refused), *of_accepted.shape[1:]), of_accepted.dtype)])

    def text(of_refused: list[str]) -> pa.Array:
        return pa.concat_arrays([pa.nulls(len(checked), pa.string()), pa.array(of_refused, pa.string())])

    digests = column(np.frombuffer(checked.digests, np.uint8).reshape(-1, 32))
    numbers = [column(np.array(values)) for values in (checked.widths, checked.heights, checked.sizes_bytes)]
    texts = [text([reject[field] for reject in refused.values()]) for field in (1, 2)]
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        for start in range(0, len(order), _GROUP_ROWS):
            places = order[start : start + _GROUP_ROWS]
            columns = [
                binary_column(marks[places].astype(">u8").tobytes(), MARK_SIZE_BYTES),
                binary_column(digests[places].tobytes(), 32),
                *(values[places] for values in numbers),
                *(values.take(pa.array(places)) for values in texts),
            ]
            writer.write_table(pa.table(columns, schema=_SCHEMA))
    return len(order)


def _from_table(table: pa.Table) -> Seen:
    places = np.flatnonzero(table["reason"].is_valid().to_numpy())
    refused = table.select(["reason", "detail"]).take(places).to_pylist()
    return Seen(
        marks=as_words(bytes_of_column(table["mark"]), MARK_SIZE_BYTES),
        digests=np.frombuffer(bytes_of_column(table["sha256"]), np.uint8).reshape(-1, 32),
        widths=table["width"].to_numpy(),
        heights=table["height"].to_numpy(),
        sizes_bytes=table["size_bytes"].to_numpy(),
        refused={place: (each["reason"], each["detail"]) for place, each in zip(places.tolist(), refused, strict=True)},
    )
