"""Cached features of one frozen part, shard by shard, in storage; `layout.py` says how they lie there."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import pyarrow as pa

from transfer.catalog import layout
from transfer.dataset.manifest import Shard
from transfer.errors import AlreadyExistsError, CorruptObjectError, FeaturesError, ObjectNotFoundError
from transfer.features.layout import Entry, read_entry, schema_for, shards_in, told_by_names
from transfer.storage import Store, put_document, sha256_of_file

logger = logging.getLogger(__name__)
BATCH_SIZE_BYTES = 4 * 1024**2
"""Of a record batch: what a writer holds in memory."""
OPENED_AT_ONCE = 8
"""Shards: a bucket takes a while over each answer. A large content is fetched through four connections, and there are
32 to a bucket."""


class Described(Protocol):
    """What a frozen part says of its cached features. A `FrozenPart` does, and whoever has only its description."""

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides the features."""

    @property
    def description(self) -> dict[str, Any]:
        """What `frozen_part.json` says of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one image."""

    @property
    def dtype(self) -> Literal["float32", "float16"]:
        """Type in the cache."""


class FeatureStore:
    """The cached features of one frozen part."""

    def __init__(self, store: Store, frozen_part: Described) -> None:
        self.frozen_part = frozen_part
        self._store = store
        self._folder = layout.features_folder(frozen_part.digest)

    def shards(self) -> set[str]:
        """SHA-256 of each image shard for which there is an entry. One listing."""
        return shards_in(self._store, self.frozen_part.digest)

    def has(self, shard: Shard) -> bool:
        """Whether there is an entry for an image shard. One request. Raises StorageError."""
        return self._store.exists(self._entry_name(shard))

    def open(self, shard: Shard, entry: Entry | None = None) -> CachedRows:
        """The cached rows of an image shard, verified, without those of removed images. `entry`: read if not given.

        Raises ObjectNotFoundError when there are none, CorruptObjectError when they are damaged or of another shape.
        """
        entry = entry or self._entry(shard)
        file = self._store.open_verified(self._content(shard, entry), entry.sha256)
        try:
            rows = CachedRows(file, shard, shape=self.frozen_part.shape, dtype=self.frozen_part.dtype)
        except (pa.ArrowInvalid, KeyError, ValueError, IndexError) as error:
            raise self._unreadable(shard, str(error)) from error
        return rows

    @contextmanager
    def writer(self, shard: Shard) -> Iterator[ShardWriter]:
        """Cache the features of an image shard: append all its stored rows in order; they are committed at the end.

        Nothing is cached when the block raises. Whoever commits first counts. Raises StorageError, and ValueError when
        the number of rows is not the shard's.
        """
        with tempfile.TemporaryDirectory(prefix="transfer-features-") as folder:
            path = Path(folder) / "features.arrow"
            writer = ShardWriter(path, self.frozen_part)
            with writer:
                yield writer
            if writer.rows != shard.stored_rows:
                raise ValueError(f"{writer.rows} rows were appended for a shard of {shard.stored_rows}")
            self._commit(shard, path)

    def open_or_discard(self, shard: Shard) -> CachedRows | None:
        """The cached rows of an image shard, or None; damaged ones are discarded. Raises StorageError."""
        try:
            return self.open(shard)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            logger.warning("%s It is discarded, to be computed again.", error.message)
            self.discard(shard)
            return None

    def open_all(self, shards: Sequence[Shard]) -> list[CachedRows | None]:
        """`open_or_discard` for several image shards, in their order. A listing spares reading their entries."""
        told = told_by_names({item.name: item.size_bytes for item in self._store.list(f"{self._folder}/")})

        def open_one(shard: Shard) -> CachedRows | None:
            # What was listed may have been discarded meanwhile, and computed again.
            with suppress(CorruptObjectError, ObjectNotFoundError):
                if entry := told.get(shard.sha256):
                    return self.open(shard, entry)
            return self.open_or_discard(shard)

        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            return list(pool.map(open_one, shards))

    def discard(self, shard: Shard) -> None:
        """Remove the cached features of a shard, because they turned out damaged: they can be computed again."""
        entry = self._entry_name(shard)
        try:
            content = self._content(shard, self._entry(shard))
        except (CorruptObjectError, ObjectNotFoundError):
            content = None
        # The entry first: whoever comes in between finds nothing cached.
        self._store.remove(entry)
        if content:
            self._store.remove(content)

    def _commit(self, shard: Shard, path: Path) -> None:
        description = layout.features_description(self.frozen_part.digest)
        _put_unless_there(self._store, description, self.frozen_part.description)
        size_bytes = path.stat().st_size
        entry = Entry(format=2, sha256=sha256_of_file(path), rows=shard.stored_rows, size_bytes=size_bytes)
        self._put_content(self._content(shard, entry), path)
        _put_unless_there(self._store, self._entry_name(shard), entry.model_dump())

    def _put_content(self, name: str, path: Path) -> None:
        try:
            self._store.put(name, path)
        except AlreadyExistsError:
            # Its name has its digest, so the other bytes are damaged: a discard was interrupted before it removed them.
            self._store.remove(name)
            self._store.put(name, path)

    def _entry(self, shard: Shard) -> Entry:
        return read_entry(self._store, self.frozen_part.digest, shard.sha256)

    def _entry_name(self, shard: Shard) -> str:
        return layout.features_entry(self.frozen_part.digest, shard.sha256)

    def _content(self, shard: Shard, entry: Entry) -> str:
        return entry.content(self.frozen_part.digest, shard.sha256)

    def _unreadable(self, shard: Shard, found: str) -> CorruptObjectError:
        return CorruptObjectError(
            f"The cached features of {shard.name} in {self._store.uri}/{self._folder} do not read as features of shape "
            f"{self.frozen_part.shape}: {found}.",
            advice="Run `transfer cache verify --remove`; they are computed again.",
        )


def _put_unless_there(store: Store, name: str, document: dict[str, Any]) -> None:
    # Another worker may have been first; what it wrote counts.
    with suppress(AlreadyExistsError):
        put_document(store, name, document)


class CachedRows:
    """Cached features of the images of one shard, memory-mapped.

    `labels`: int32 [rows], without those of removed images. `live`: int64 [rows], where their features are among
    all stored ones; None if no image was removed. The map stays valid for as long as this object lives, also when the
    file is removed.
    """

    def __init__(self, file: pa.NativeFile, shard: Shard, *, shape: tuple[int, ...], dtype: str) -> None:
        reader = pa.ipc.open_file(file)
        batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self.shape = shape
        self._parts = [_values(batch, shape, dtype) for batch in batches]
        labels = np.concatenate([batch["label"].to_numpy() for batch in batches])
        if len(labels) != shard.stored_rows:
            raise ValueError(f"{len(labels)} rows, expected {shard.stored_rows}")
        self._removed = shard.removed
        self.live = shard.live_rows() if shard.removed else None
        self.labels = labels if self.live is None else labels[self.live]

    def __len__(self) -> int:
        return len(self.labels)

    def stored_parts(self) -> list[np.ndarray]:
        """All stored rows, also of removed images, in order, in pieces that are mapped and not read yet [n, *shape]."""
        return list(self._parts)

    def parts(self) -> Iterator[np.ndarray]:
        """The rows that `labels` counts, in order, in pieces [n, *shape]: mapped, or copied if images were removed."""
        is_live = np.isin(np.arange(sum(map(len, self._parts))), self._removed, invert=True)
        start = 0
        for part in self._parts:
            stays = is_live[start : start + len(part)]
            yield part if stays.all() else part[stays]
            start += len(part)


def _values(batch: pa.RecordBatch, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The outputs of a record batch, [rows, *shape], without copying them."""
    if not batch.schema.equals(schema_for(shape, dtype), check_metadata=True):
        raise ValueError(f"its columns are {batch.schema}")
    flat: np.ndarray = batch["features"].flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(batch.num_rows, *shape)


class ShardWriter:
    """Writes rows to a file, holding no more than a record batch in memory."""

    def __init__(self, path: Path, frozen_part: Described) -> None:
        self.rows = 0
        self._shape = frozen_part.shape
        self._dtype = np.dtype(frozen_part.dtype)
        self._batch_rows = max(1, BATCH_SIZE_BYTES // (prod(self._shape) * self._dtype.itemsize))
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._waiting_rows = 0
        self._schema = schema_for(frozen_part.shape, frozen_part.dtype)
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting_rows:
            self._write(self._waiting_rows)
        self._writer.close()
        self._file.close()

    def append(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Add rows: features [n, *shape] of any float type, labels int32 [n].

        Raises FeaturesError when a value is too large for the type in which it is cached.
        """
        if features.shape[1:] != self._shape:
            raise ValueError(f"features are {features.shape[1:]} for an image, expected {self._shape}")
        try:
            with np.errstate(over="raise"):
                cached = features.astype(self._dtype)
        except FloatingPointError as error:
            raise FeaturesError(
                f"An output of the frozen part is {np.abs(features).max():g}, which {self._dtype} cannot hold.",
                advice="Set features.map_dtype to float32.",
            ) from error
        self._waiting.append((cached, labels.astype(np.int32)))
        self._waiting_rows += len(labels)
        self.rows += len(labels)
        while self._waiting_rows >= self._batch_rows:
            self._write(self._batch_rows)

    def _write(self, rows: int) -> None:
        features = np.concatenate([values for values, _ in self._waiting])
        labels = np.concatenate([labels for _, labels in self._waiting])
        flat = pa.array(features[:rows].reshape(-1))
        values = pa.FixedSizeListArray.from_arrays(flat, prod(self._shape))
        batch = pa.record_batch([values, pa.array(labels[:rows])], schema=self._schema)
        self._writer.write_batch(batch)
        self._waiting = [(features[rows:], labels[rows:])]
        self._waiting_rows -= rows
