"""What is kept of one prefix, shard by shard, in storage; `layout.py` says how it lies there."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from transfer.activations.layout import (
    DESCRIPTION,
    Entry,
    content_name,
    description_name,
    entry_name,
    folder_of,
    read_entry,
    schema_for,
)
from transfer.activations.prefix import Prefix
from transfer.dataset.manifest import Shard
from transfer.errors import ActivationsError, AlreadyExistsError, CorruptObjectError, ObjectNotFoundError
from transfer.storage import Store, put_content, put_document, sha256_of_file

logger = logging.getLogger(__name__)

BATCH_SIZE_BYTES = 4 * 1024**2
"""Of a record batch: what a writer holds in memory."""
OPENED_AT_ONCE = 8
"""Shards: a bucket takes a while over each answer. A large content is fetched through four connections, and there are
32 to a bucket."""


class KeptRows:
    """Outputs of a prefix for the images of one shard, memory-mapped. Row k belongs to row k of the image shard.

    `labels`: int32 [rows]. The map stays valid for as long as this object lives, also when the file is removed.
    """

    def __init__(self, file: pa.NativeFile, *, shape: tuple[int, ...], dtype: str) -> None:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.shape = shape
        self._parts = [_values(batch, shape, dtype) for batch in batches]
        self.labels = np.concatenate([batch["label"].to_numpy() for batch in batches])

    def __len__(self) -> int:
        return len(self.labels)

    def parts(self) -> list[np.ndarray]:
        """All rows in order, in pieces that are mapped and not read yet: arrays [n, *shape]."""
        return list(self._parts)


class Kept:
    """The outputs of one prefix that are kept in a store."""

    def __init__(self, store: Store, prefix: Prefix) -> None:
        self.prefix = prefix
        self._store = store
        self._folder = folder_of(prefix.digest)

    def shards(self) -> set[str]:
        """SHA-256 of each image shard for which there is an entry. One listing."""
        names = (item.name.removeprefix(f"{self._folder}/") for item in self._store.list(f"{self._folder}/"))
        return {name.removesuffix(".json") for name in names if name.endswith(".json") and name != DESCRIPTION}

    def open(self, shard: Shard) -> KeptRows:
        """The rows kept for an image shard, their bytes verified.

        Raises ObjectNotFoundError when there are none, CorruptObjectError when they are damaged or of another shape.
        """
        entry = self._entry(shard)
        file = self._store.open_verified(self._content(entry.sha256), entry.sha256)
        try:
            rows = KeptRows(file, shape=self.prefix.shape, dtype=self.prefix.dtype)
        except (pa.ArrowInvalid, KeyError, ValueError, IndexError) as error:
            raise self._unreadable(shard, str(error)) from error
        if len(rows) != shard.rows:
            raise self._unreadable(shard, f"{len(rows)} rows, expected {shard.rows}")
        return rows

    @contextmanager
    def writer(self, shard: Shard) -> Iterator[ShardWriter]:
        """Keep the outputs for an image shard: append all its rows in order; they are committed when the block ends.

        Nothing is kept when the block raises. Whoever commits first counts. Raises StorageError, and ValueError when
        the number of rows is not the shard's.
        """
        with tempfile.TemporaryDirectory(prefix="transfer-activations-") as folder:
            path = Path(folder) / "activations.arrow"
            writer = ShardWriter(path, self.prefix)
            with writer:
                yield writer
            if writer.rows != shard.rows:
                raise ValueError(f"{writer.rows} rows were appended for a shard of {shard.rows}")
            self._commit(shard, path)

    def open_or_discard(self, shard: Shard) -> KeptRows | None:
        """The rows kept for an image shard, or None; damaged ones are discarded. Raises StorageError."""
        try:
            return self.open(shard)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            logger.warning("%s It is discarded, to be computed again.", error.message)
            self.discard(shard)
            return None

    def open_all(self, shards: Sequence[Shard]) -> list[KeptRows | None]:
        """`open_or_discard` for several image shards, in their order."""
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            return list(pool.map(self.open_or_discard, shards))

    def discard(self, shard: Shard) -> None:
        """Remove what is kept for a shard, because it turned out damaged: it can be computed again."""
        entry = self._entry_name(shard)
        try:
            content = self._content(self._entry(shard).sha256)
        except (CorruptObjectError, ObjectNotFoundError):
            content = None
        # The entry first: whoever comes in between finds nothing kept.
        self._store.remove(entry)
        if content:
            self._store.remove(content)

    def _commit(self, shard: Shard, path: Path) -> None:
        _put_unless_there(self._store, description_name(self.prefix.digest), description_of(self.prefix))
        sha256 = self._put_content(path)
        entry = Entry(sha256=sha256, rows=shard.rows, size_bytes=path.stat().st_size)
        _put_unless_there(self._store, self._entry_name(shard), entry.model_dump())

    def _put_content(self, path: Path) -> str:
        try:
            return put_content(self._store, self._folder, ".arrow", path)[1]
        except AlreadyExistsError:
            # Its name is its digest, so the other bytes are damaged: a discard was interrupted before it removed them.
            self._store.remove(self._content(sha256_of_file(path)))
            return put_content(self._store, self._folder, ".arrow", path)[1]

    def _entry(self, shard: Shard) -> Entry:
        return read_entry(self._store, self.prefix.digest, shard.sha256)

    def _entry_name(self, shard: Shard) -> str:
        return entry_name(self.prefix.digest, shard.sha256)

    def _content(self, sha256: str) -> str:
        return content_name(self.prefix.digest, sha256)

    def _unreadable(self, shard: Shard, found: str) -> CorruptObjectError:
        return CorruptObjectError(
            f"What is kept in {self._store.uri}/{self._folder} for {shard.name} does not read as activations of shape "
            f"{self.prefix.shape}: {found}.",
            advice="Run `transfer cache verify --remove`; it is computed again.",
        )


class ShardWriter:
    """Writes rows to a file, holding no more than a record batch in memory."""

    def __init__(self, path: Path, prefix: Prefix) -> None:
        self.rows = 0
        self._shape = prefix.shape
        self._dtype = np.dtype(prefix.dtype)
        self._batch_rows = max(1, BATCH_SIZE_BYTES // prefix.row_bytes)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_rows = 0
        self._schema = schema_for(prefix.shape, prefix.dtype)
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting_rows:
            self._write(self._waiting_rows)
        self._writer.close()
        self._file.close()

    def append(self, activations: np.ndarray, labels: np.ndarray) -> None:
        """Add rows: activations [n, *shape] of any float type, labels int32 [n].

        Raises ActivationsError when a value is too large for the type that is kept.
        """
        if activations.shape[1:] != self._shape:
            raise ValueError(f"activations are {activations.shape[1:]} for an image, expected {self._shape}")
        self._waiting.append((self._in_kept_type(activations), labels.astype(np.int32)))
        self._waiting_rows += len(labels)
        self.rows += len(labels)
        while self._waiting_rows >= self._batch_rows:
            self._write(self._batch_rows)

    def _in_kept_type(self, activations: np.ndarray) -> np.ndarray:
        try:
            with np.errstate(over="raise"):
                return activations.astype(self._dtype)
        except FloatingPointError as error:
            raise ActivationsError(
                f"An output of the frozen part is {np.abs(activations).max():g}, which {self._dtype} cannot hold.",
                advice="Set activations.map_dtype to float32.",
            ) from error

    def _write(self, rows: int) -> None:
        activations = np.concatenate([values for values, _ in self._waiting])
        labels = np.concatenate([labels for _, labels in self._waiting])
        flat = pa.array(activations[:rows].reshape(-1))
        values = pa.FixedSizeListArray.from_arrays(flat, prod(self._shape))
        batch = pa.record_batch([values, pa.array(labels[:rows])], schema=self._schema)
        self._writer.write_batch(batch)
        self._waiting = [(activations[rows:], labels[rows:])]
        self._waiting_rows -= rows


def description_of(prefix: Prefix) -> dict[str, Any]:
    """What `prefix.json` says of a prefix."""
    return {
        "base": prefix.base,
        "image_size": prefix.image_size,
        "preprocessing": prefix.preprocess.name,
        "cut": prefix.cut,
        "shape": list(prefix.shape),
        "dtype": prefix.dtype,
        "view": prefix.view.describe() if prefix.view else None,
    }


def _values(batch: pa.RecordBatch, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The outputs of a record batch, [rows, *shape], without copying them."""
    if not batch.schema.equals(schema_for(shape, dtype), check_metadata=True):
        raise ValueError(f"its columns are {batch.schema}")
    flat: np.ndarray = batch["activation"].flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(batch.num_rows, *shape)


def _put_unless_there(store: Store, name: str, document: dict[str, Any]) -> None:
    # Another worker may have been first; what it wrote counts.
    with suppress(AlreadyExistsError):
        put_document(store, name, document)
