"""Cached features of one frozen part, shard by shard, in storage; `layout.py` says how they lie there."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import pyarrow as pa

from transfer.backbone.blocks import cut_points, nodes_in_order
from transfer.catalog import layout
from transfer.dataset.manifest import Shard
from transfer.errors import AlreadyExistsError, CorruptObjectError, FeaturesError, ObjectNotFoundError
from transfer.features.frozen import FrozenPart, View
from transfer.features.layout import Entry, read_entry, schema_for, told_by_names
from transfer.storage import Store, put_document, read_document, sha256_of_file

logger = logging.getLogger(__name__)
BATCH_SIZE_BYTES = 4 * 1024**2
"""Of a record batch: what a writer holds in memory."""
OPENED_AT_ONCE = 8
"""Shards: a bucket takes a while over each answer. A large content is fetched through four connections, and there are
32 to a bucket."""


class FeatureStore:
    """The cached features of one frozen part."""

    def __init__(self, store: Store, frozen_part: FrozenPart) -> None:
        self.frozen_part = frozen_part
        self._store = store
        self._folder = layout.features_folder(frozen_part.digest)

    def shards(self) -> set[str]:
        """SHA-256 of each image shard for which there is an entry. One listing."""
        names = (item.name for item in self._store.list(f"{self._folder}/"))
        return {shard for name in names if (shard := layout.features_entry_in(name))}

    def open(self, shard: Shard, entry: Entry | None = None) -> CachedRows:
        """The cached rows of an image shard, their bytes verified. `entry`: what its entry says, else it is read.

        Raises ObjectNotFoundError when there are none, CorruptObjectError when they are damaged or of another shape.
        """
        entry = entry or self._entry(shard)
        file = self._store.open_verified(self._content(shard, entry), entry.sha256)
        try:
            rows = CachedRows(file, shape=self.frozen_part.shape, dtype=self.frozen_part.dtype)
        except (pa.ArrowInvalid, KeyError, ValueError, IndexError) as error:
            raise self._unreadable(shard, str(error)) from error
        if len(rows) != shard.rows:
            raise self._unreadable(shard, f"{len(rows)} rows, expected {shard.rows}")
        return rows

    @contextmanager
    def writer(self, shard: Shard) -> Iterator[ShardWriter]:
        """Cache the features of an image shard: append all its rows in order; they are committed when the block ends.

        Nothing is cached when the block raises. Whoever commits first counts. Raises StorageError, and ValueError when
        the number of rows is not the shard's.
        """
        with tempfile.TemporaryDirectory(prefix="transfer-features-") as folder:
            path = Path(folder) / "features.arrow"
            writer = ShardWriter(path, self.frozen_part)
            with writer:
                yield writer
            if writer.rows != shard.rows:
                raise ValueError(f"{writer.rows} rows were appended for a shard of {shard.rows}")
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
        _put_unless_there(
            self._store, layout.features_description(self.frozen_part.digest), description_of(self.frozen_part)
        )
        entry = Entry(format=2, sha256=sha256_of_file(path), rows=shard.rows, size_bytes=path.stat().st_size)
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


def description_of(frozen_part: FrozenPart) -> dict[str, Any]:
    """What `frozen_part.json` says of a frozen part."""
    return {
        "base": frozen_part.base,
        "image_input": frozen_part.image_input.describe(),
        "preprocessing": frozen_part.preprocess.name,
        "cut": frozen_part.cut,
        "shape": list(frozen_part.shape),
        "dtype": frozen_part.dtype,
        "view": frozen_part.view.describe() if frozen_part.view else None,
    }


class CachedRows:
    """Cached features of the images of one shard, memory-mapped. Row k belongs to row k of the image shard.

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


def _values(batch: pa.RecordBatch, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """The outputs of a record batch, [rows, *shape], without copying them."""
    if not batch.schema.equals(schema_for(shape, dtype), check_metadata=True):
        raise ValueError(f"its columns are {batch.schema}")
    flat: np.ndarray = batch["features"].flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(batch.num_rows, *shape)


class ShardWriter:
    """Writes rows to a file, holding no more than a record batch in memory."""

    def __init__(self, path: Path, frozen_part: FrozenPart) -> None:
        self.rows = 0
        self._shape = frozen_part.shape
        self._dtype = np.dtype(frozen_part.dtype)
        self._batch_rows = max(1, BATCH_SIZE_BYTES // frozen_part.row_bytes)
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


@dataclass(frozen=True)
class Stream:
    """One pass over some shards that computes `frozen_parts`, from pixels or from the cached features of `start`."""

    start: FrozenPart | None
    frozen_parts: tuple[FrozenPart, ...]
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Images that go through the network."""
        return sum(shard.rows for shard in self.shards)


class Inventory:
    """Which features are cached, as one listing of each frozen part found them and as it is noted here since then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shards: dict[str, set[str]] = {}
        self._starts: dict[tuple[int, View | None], FrozenPart] = {}

    def has(self, frozen_part: FrozenPart, shard: Shard) -> bool:
        """Whether the features of a shard are cached."""
        return shard.sha256 in self._of(frozen_part)

    def add(self, frozen_part: FrozenPart, shard: Shard) -> None:
        """Note that they are."""
        self._of(frozen_part).add(shard.sha256)
        if (description := description_of(frozen_part)) not in self._described:
            self._described.append(description)

    def remove(self, frozen_part: FrozenPart, shard: Shard) -> None:
        """Note that they are not any more."""
        self._of(frozen_part).discard(shard.sha256)

    def starts(self, frozen_part: FrozenPart) -> list[FrozenPart]:
        """Earlier cuts whose features may be cached in float32, the nearest one first.

        Other jobs may have left them, so they are looked for by their descriptions. `has` then goes by the digest, and
        so finds nothing where the description is that of a network with other weights.
        """
        nodes = nodes_in_order(frozen_part.network)
        named = {description["cut"] for description in self._described}
        inner = [
            cut.tensor
            for cut in cut_points(nodes, frozen_part.network.outputs[0])[:-1]
            if nodes[cut.position].name in named and not nodes[cut.position].is_input
        ]
        candidates = [self._cut_at(tensor, frozen_part) for tensor in reversed(inner)]
        return [start for start in candidates if description_of(start) in self._described]

    def plan(self, shards: Sequence[Shard], frozen_parts: Sequence[FrozenPart]) -> list[Stream]:
        """Streams after which everything is cached. Each starts from the nearest cut that is cached for its shards.

        Features of a shard that start at the same place are computed together.
        """
        missing = [(shard, [p for p in frozen_parts if not self.has(p, shard)]) for shard in shards]
        lacked = {frozen_part for _, lacking in missing for frozen_part in lacking}
        starts = {frozen_part: self.starts(frozen_part) for frozen_part in lacked}
        streams: dict[tuple[FrozenPart | None, tuple[FrozenPart, ...]], list[Shard]] = {}
        for shard, lacking in missing:
            together: dict[tuple[FrozenPart | None, View | None], list[FrozenPart]] = {}
            for frozen_part in lacking:
                start = next((start for start in starts[frozen_part] if self.has(start, shard)), None)
                together.setdefault((start, frozen_part.view), []).append(frozen_part)
            for (start, _), emitted in together.items():
                streams.setdefault((start, tuple(emitted)), []).append(shard)
        return [Stream(start, emitted, tuple(shards)) for (start, emitted), shards in streams.items()]

    def _of(self, frozen_part: FrozenPart) -> set[str]:
        if frozen_part.digest not in self._shards:
            self._shards[frozen_part.digest] = FeatureStore(self._store, frozen_part).shards()
        return self._shards[frozen_part.digest]

    def _cut_at(self, tensor: Any, frozen_part: FrozenPart) -> FrozenPart:
        """The frozen part that ends at an inner tensor of another one; always the same object, with its digest."""
        key = (id(tensor), frozen_part.view)
        if key not in self._starts:
            network = keras.Model(frozen_part.network.inputs[0], tensor)
            self._starts[key] = replace(frozen_part, network=network, dtype="float32")
        return self._starts[key]

    @cached_property
    def _described(self) -> list[dict[str, Any]]:
        """The descriptions of all frozen parts that have cached features."""
        found = []
        for item in self._store.list(f"{layout.FEATURES}/"):
            if item.name == layout.features_description(layout.below(layout.FEATURES, item.name)[0]):
                try:
                    found.append(read_document(self._store, item.name))
                except (CorruptObjectError, ObjectNotFoundError):
                    continue  # It only spares work, and may be removed at any time.
        return found
