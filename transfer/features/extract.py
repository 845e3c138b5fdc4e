"""Computing features that are not cached yet: one stream over the images that lack something, shard by shard."""

from __future__ import annotations

import functools
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import tensorflow as tf

from transfer.augmentation import Augmentation, StepRandomness, step_randomness
from transfer.config import AugmentationConfig, ImageInput
from transfer.dataset.batches import stored_images
from transfer.dataset.manifest import Shard
from transfer.features.forward import Forward, build_forward
from transfer.features.frozen import FrozenPart, View
from transfer.features.inventory import Inventory, Stream
from transfer.features.layout import Extraction
from transfer.features.store import FeatureStore
from transfer.runtime.progress import progress
from transfer.storage import Store

VIEW_BLOCK_ROWS = 32
"""Rows of a shard for which random numbers are drawn together, whatever the batch. Part of how views look."""

Engine = Literal["auto", "tensorflow", "openvino"]
Item = TypeVar("Item")
Outputs: TypeAlias = "tuple[Piece, list[np.ndarray]]"


class Extractor:
    """Extracts in several calls: cached features are listed, and a forward pass is built, once for each frozen part."""

    def __init__(self, store: Store, *, engine: Engine = "auto") -> None:
        self._store = store
        self._engine = engine
        self._inventory = Inventory(store)
        self._forwards: dict[tuple[int, ...], Forward] = {}

    def plan(self, shards: Sequence[Shard], frozen_parts: Sequence[FrozenPart]) -> list[Stream]:
        """What would be computed; nothing when everything is cached."""
        return self._inventory.plan(_unique(shards), _unique_frozen_parts(frozen_parts))

    def forward(self, frozen_parts: Sequence[FrozenPart], *, start: FrozenPart | None = None) -> Forward:
        """The forward pass that a pass of extraction uses, built when it is first asked for."""
        # Views of a frozen part share its tensors, and so its forward pass.
        key = tuple(id(frozen_part.network.outputs[0]) if frozen_part else 0 for frozen_part in (start, *frozen_parts))
        if key not in self._forwards:
            self._forwards[key] = build_forward(frozen_parts, start=start, engine=self._engine)
        return self._forwards[key]

    def extract(
        self,
        shards: Sequence[Shard],
        frozen_parts: Sequence[FrozenPart],
        *,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Extraction:
        """Compute and cache the features of each shard for each frozen part, where they are not cached yet.

        A shard is committed as soon as its last image is through, so a killed job goes on with the next one. `advance`
        is called with the number of images whenever some are done.

        Raises StorageError, CorruptObjectError for a damaged image shard, FeaturesError for features that cannot be
        cached.
        """
        done = Extraction()
        # A second round follows only where cached features that a stream starts from turn out damaged.
        while streams := self.plan(shards, frozen_parts):
            done += Extraction.sum([self._run(stream, advance) for stream in streams])
        asked = len(_unique(shards)) * len(_unique_frozen_parts(frozen_parts))
        return done + Extraction(shards_found=asked - done.shards_computed)

    def extract_all(self, wanted: Sequence[tuple[Sequence[Shard], Sequence[FrozenPart]]]) -> Extraction:
        """`extract` for several groups of shards, each with its frozen parts; shows one progress over all of them."""
        images = sum(stream.rows for shards, frozen_parts in wanted for stream in self.plan(shards, frozen_parts))
        if not images:
            return Extraction()
        with progress("frozen part", total=images) as advance:
            done = [self.extract(*each, advance=advance) for each in wanted]
        return Extraction.sum(done)

    def _run(self, stream: Stream, advance: Callable[[int], None]) -> Extraction:
        started = time.perf_counter()
        forward = self.forward(stream.frozen_parts, start=stream.start)
        built = time.perf_counter()
        waiting: deque[tuple[Piece, ...]] = deque()
        reading, computing = _Watch(), _Watch()

        def values() -> Iterator[np.ndarray]:
            for batch in reading.over(self._rows(stream, forward.batch_size)):
                waiting.append(batch.pieces)
                yield batch.values

        def by_shard() -> Iterator[Outputs]:
            for outputs in computing.over(forward.map(values())):
                done = 0
                for piece in waiting.popleft():
                    stop = done + len(piece.labels)
                    yield piece, [output[done:stop] for output in outputs]
                    done = stop

        outputs = by_shard()
        shards = [self._cache(stream, first, outputs, advance) for first in outputs]
        ended = time.perf_counter()
        # What computing waits for is read in the meantime.
        return Extraction(
            images=sum(shard.rows for shard in shards),
            shards_computed=len(shards) * len(stream.frozen_parts),
            shards_resumed=len(shards) * len(stream.frozen_parts) if stream.start else 0,
            build_s=built - started,
            input_s=reading.seconds,
            forward_s=max(computing.seconds - reading.seconds, 0.0),
            write_s=ended - built - computing.seconds,
        )

    def _cache(self, stream: Stream, first: Outputs, rest: Iterator[Outputs], advance: Callable[[int], None]) -> Shard:
        """Cache the features of the shard whose first rows are `first`; its other rows come next in `rest`."""
        shard = first[0].shard
        with ExitStack() as stack:
            writers = [
                stack.enter_context(FeatureStore(self._store, frozen_part).writer(shard))
                for frozen_part in stream.frozen_parts
            ]
            for piece, outputs in _to_end_of_shard(first, rest):
                for writer, output in zip(writers, outputs, strict=True):
                    writer.append(output, piece.labels)
                advance(len(piece.labels))
        for frozen_part in stream.frozen_parts:
            self._inventory.add(frozen_part, shard)
        return shard

    def _rows(self, stream: Stream, batch_size: int) -> Iterator[RowBatch]:
        start = stream.start
        if start is not None:
            return cached_rows(
                FeatureStore(self._store, start),
                stream.shards,
                batch_size=batch_size,
                on_damaged=lambda shard: self._inventory.remove(start, shard),
            )
        frozen_part = stream.frozen_parts[0]
        images = image_rows(self._store, stream.shards, image_input=frozen_part.image_input, batch_size=batch_size)
        return seen_as(frozen_part.view, images) if frozen_part.view else images


def _to_end_of_shard(first: Outputs, rest: Iterator[Outputs]) -> Iterator[Outputs]:
    yield first
    stop = first[0].stop
    while stop < first[0].shard.rows:
        outputs = next(rest)
        yield outputs
        stop = outputs[0].stop


class _Watch:
    """Adds up the seconds that it takes to get items out of an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield item


def _unique(shards: Sequence[Shard]) -> list[Shard]:
    """Each stored shard once, with all its rows: so its features serve every version, whatever each removed."""
    return list({shard.sha256: shard.whole for shard in shards}.values())


def _unique_frozen_parts(frozen_parts: Sequence[FrozenPart]) -> list[FrozenPart]:
    return list({frozen_part.digest: frozen_part for frozen_part in frozen_parts}.values())


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one shard within a batch, from row `start` of the shard. `labels`: int32 [rows]."""

    shard: Shard
    start: int
    labels: np.ndarray

    @property
    def stop(self) -> int:
        """Row of the shard after its last one."""
        return self.start + len(self.labels)


@dataclass(frozen=True)
class RowBatch:
    """Rows in the order of their shards: float32 [rows, *shape], and where they belong."""

    values: np.ndarray
    pieces: tuple[Piece, ...]


def image_rows(
    store: Store, shards: Sequence[Shard], *, image_input: ImageInput, batch_size: int
) -> Iterator[RowBatch]:
    """All images of some shards as float32 [rows, height, width, 3] in 0..255, one shard after the other.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    divider = _Divider(shards)
    for images, labels in stored_images(store, shards, image_input=image_input, batch_size=batch_size):
        yield RowBatch(images, divider.pieces(labels))


def cached_rows(
    features: FeatureStore, shards: Sequence[Shard], *, batch_size: int, on_damaged: Callable[[Shard], None]
) -> Iterator[RowBatch]:
    """The cached features of some shards, one after the other, [rows, *shape] in the type in which they are cached.

    A shard whose features are damaged or gone is left out, what there is of them discarded, and told to `on_damaged`.
    Raises StorageError.
    """
    for shard in shards:
        rows = features.open_or_discard(shard)
        if rows is None:
            on_damaged(shard)
            continue
        divider = _Divider([shard])
        labels = iter(_in_batches([rows.labels], batch_size))
        for values in _in_batches(rows.parts(), batch_size):
            yield RowBatch(values, divider.pieces(next(labels)))


class _Divider:
    """Divides rows that come one after the other among the shards that they come from."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = deque(shards)
        self._row = 0

    def pieces(self, labels: np.ndarray) -> tuple[Piece, ...]:
        """Where the next rows belong, given their labels."""
        pieces = []
        while len(labels):
            shard = self._shards[0]
            piece = Piece(shard, self._row, labels[: shard.rows - self._row])
            pieces.append(piece)
            labels = labels[len(piece.labels) :]
            self._row = piece.stop
            if piece.stop == shard.rows:
                self._shards.popleft()
                self._row = 0
        return tuple(pieces)


def _in_batches(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The rows of some arrays, in order, `size` at a time; the last ones may be fewer."""
    waiting = None
    for part in parts:
        waiting = part if waiting is None or not len(waiting) else np.concatenate([waiting, part])
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
    if waiting is not None and len(waiting):
        yield waiting


def seen_as(view: View, batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    """Images as one of their views shows them, from the images as they are.

    How an image looks depends on the view, its shard and its row in it, not on how rows are put into batches.
    """
    for batch in batches:
        augment = _augment(view.augmentation, batch.values.shape[1:])
        values = []
        done = 0
        for piece in batch.pieces:
            rows = np.arange(piece.start, piece.stop)
            for block in np.unique(rows // VIEW_BLOCK_ROWS).tolist():
                positions = rows[rows // VIEW_BLOCK_ROWS == block] % VIEW_BLOCK_ROWS
                images = batch.values[done : done + len(positions)]
                digest = hashlib.sha256(f"{view.seed} {view.index} {piece.shard.sha256} {block}".encode()).digest()
                seed = np.frombuffer(digest[:8], "<i4").astype(np.int32)
                values.append(augment(tf.constant(images), tf.constant(seed), tf.constant(positions, tf.int32)).numpy())
                done += len(positions)
        yield RowBatch(np.concatenate(values), batch.pieces)


@functools.lru_cache(maxsize=4)
def _augment(config: AugmentationConfig, shape: tuple[int, ...]) -> Any:
    """A function of images float32 [rows, *shape], the seed of their block, and their positions in it."""
    augmentation = Augmentation(config)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *shape], tf.float32),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def augment(images: tf.Tensor, seed: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        with step_randomness(StepRandomness(seed, positions, VIEW_BLOCK_ROWS)):
            return augmentation(images)

    return augment
