"""Where the rows that go through a network come from: images, augmented views of them, or kept outputs."""

from __future__ import annotations

import functools
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.activations.kept import Kept
from transfer.activations.prefix import View
from transfer.augmentation.layers import Augmentation
from transfer.augmentation.randomness import StepRandomness, step_randomness
from transfer.config import AugmentationConfig
from transfer.dataset.manifest import Shard
from transfer.dataset.stored import stored_images
from transfer.storage import Store

VIEW_BLOCK_ROWS = 32
"""Rows of a shard for which random numbers are drawn together, whatever the batch. Part of how views look."""


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


def image_rows(store: Store, shards: Sequence[Shard], *, image_size: int, batch_size: int) -> Iterator[RowBatch]:
    """All images of some shards as float32 [rows, image_size, image_size, 3] in 0..255, one shard after the other.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    divider = _Divider(shards)
    for images, labels in stored_images(store, shards, image_size=image_size, batch_size=batch_size):
        yield RowBatch(images, divider.pieces(labels))


def kept_rows(
    kept: Kept, shards: Sequence[Shard], *, batch_size: int, on_damaged: Callable[[Shard], None]
) -> Iterator[RowBatch]:
    """What is kept for some shards, one after the other, [rows, *prefix.shape] in the type that is kept.

    A shard whose rows are damaged or gone is left out, what was kept of it discarded, and told to `on_damaged`. Raises
    StorageError.
    """
    for shard in shards:
        rows = kept.open_or_discard(shard)
        if rows is None:
            on_damaged(shard)
            continue
        divider = _Divider([shard])
        labels = iter(_in_batches([rows.labels], batch_size))
        for values in _in_batches(rows.parts(), batch_size):
            yield RowBatch(values, divider.pieces(next(labels)))


def seen_as(view: View, batches: Iterator[RowBatch], *, image_size: int) -> Iterator[RowBatch]:
    """Images as one of their views shows them, from the images as they are.

    How an image looks depends on the view, its shard and its row in it, not on how rows are put into batches.
    """
    augment = _augment(view.augmentation, image_size)
    for batch in batches:
        values = []
        done = 0
        for piece in batch.pieces:
            rows = np.arange(piece.start, piece.stop)
            for block in np.unique(rows // VIEW_BLOCK_ROWS).tolist():
                positions = rows[rows // VIEW_BLOCK_ROWS == block] % VIEW_BLOCK_ROWS
                images = batch.values[done : done + len(positions)]
                seed = _seed(view, piece.shard, block)
                values.append(augment(tf.constant(images), tf.constant(seed), tf.constant(positions, tf.int32)).numpy())
                done += len(positions)
        yield RowBatch(np.concatenate(values), batch.pieces)


def _seed(view: View, shard: Shard, block: int) -> np.ndarray:
    """Seed of a block of rows, int32 [2]."""
    digest = hashlib.sha256(f"{view.seed} {view.index} {shard.sha256} {block}".encode()).digest()
    return np.frombuffer(digest[:8], "<i4").astype(np.int32)


@functools.lru_cache(maxsize=4)
def _augment(config: AugmentationConfig, image_size: int) -> Any:
    """A function of images float32 [rows, size, size, 3], the seed of their block, and their positions in it."""
    augmentation = Augmentation(config)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, image_size, image_size, 3], tf.float32),
            tf.TensorSpec([2], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def augment(images: tf.Tensor, seed: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        with step_randomness(StepRandomness(seed, positions, VIEW_BLOCK_ROWS)):
            return augmentation(images)

    return augment


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
