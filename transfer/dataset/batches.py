"""Decoded images from shards, as tensors: in the batches of an epoch, or in stored order.

The order of an epoch is a pure function of (shards, seed, epoch), not of the number of workers. Shards are shuffled and
grouped into windows that fit in memory; the rows of each window are permuted. Every worker computes the same order and
takes its slice of each global batch, so 1 worker and 64 workers train on the same batches. This two-level shuffle is
usual for sharded data (compare mosaicml/streaming's `py1b`).

Each batch of an epoch is a dict:

- `images`: float32 [batch, height, width, channels], pixel values in 0..255
- `labels`: int32 [batch]
- `real`: float32 [batch], 1 for a row of the dataset, 0 for padding of the epoch's last batch
- `positions`: int32 [batch], position of each row in the global batch
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from transfer.config import DatasetConfig, ImageInput
from transfer.dataset.check import check_image
from transfer.dataset.decode import load_image, load_plain_jpeg
from transfer.dataset.manifest import Shard
from transfer.dataset.orientation import is_plain_jpeg
from transfer.dataset.refusals import RejectedImage
from transfer.dataset.shards import read_shard
from transfer.runtime.parallel import in_order
from transfer.storage import Store


@dataclass(frozen=True)
class Window:
    """Shards that are in memory together, and the order of their rows."""

    shards: tuple[Shard, ...]
    start: int
    """Position of the window's first row in the epoch."""
    order: np.ndarray
    """int64 [rows]: the k-th visited row is row `order[k]` of the concatenated shards."""


@dataclass(frozen=True)
class WorkerSlice:
    """The part of each global batch that one worker takes."""

    index: int = 0
    count: int = 1

    def positions(self, batch_size: int) -> range:
        """Positions of this worker in a global batch of `batch_size` rows, a multiple of `count`."""
        share = batch_size // self.count
        return range(self.index * share, (self.index + 1) * share)


def windows(
    shards: Sequence[Shard], *, window_size_bytes: int | None, seed: int | None = None, epoch: int = 0
) -> Iterator[Window]:
    """Yield the windows of one epoch. With `seed` None, rows are in stored order.

    Without `window_size_bytes`, all shards are one window with one global permutation. Every window size that fits all
    shards results in that same order.
    """
    generator = None if seed is None else np.random.default_rng([seed, epoch])
    visited = list(shards) if generator is None else [shards[i] for i in generator.permutation(len(shards))]
    start = 0
    for group in _groups(visited, window_size_bytes):
        rows = sum(shard.rows for shard in group)
        order = np.arange(rows) if generator is None else generator.permutation(rows)
        yield Window(shards=tuple(group), start=start, order=order)
        start += rows


def _groups(shards: Sequence[Shard], size_bytes: int | None) -> Iterator[list[Shard]]:
    """Yield groups of consecutive shards, each of at most `size_bytes` or a single shard."""
    group: list[Shard] = []
    group_size_bytes = 0
    for shard in shards:
        if group and size_bytes is not None and group_size_bytes + shard.size_bytes > size_bytes:
            yield group
            group, group_size_bytes = [], 0
        group.append(shard)
        group_size_bytes += shard.size_bytes
    if group:
        yield group


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Number of batches in an epoch; the last one may be short."""
    return -(-rows // batch_size)


BATCHES_AHEAD = 2
"""Number of batches that are decoded ahead of the consumer."""


def stored_images(
    store: Store, shards: Sequence[Shard], *, image_input: ImageInput, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all images and labels of some shards in stored order, for passes that read every image once.

    Yields float32 [n, height, width, channels] in 0..255 and int32 [n]; n is `batch_size` except in the last batch. At
    most three shards are in memory. Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    labels: deque[int] = deque()

    def images(tables: Iterable[pa.Table]) -> Iterator[bytes]:
        for table in tables:
            column = BinaryColumn(table["image"])
            for row, label in enumerate(table["label"].to_numpy().tolist()):
                labels.append(label)
                yield column[row]

    with ThreadPoolExecutor(1) as reader:
        reading = (reader.submit(read_shard, store, shard, columns=["image", "label"]) for shard in shards)
        tables = in_order(reading, Future.result, is_full=lambda waiting: len(waiting) > 1)
        for batch in decoded_batches(images(tables), image_input=image_input, batch_size=batch_size):
            yield batch, np.array([labels.popleft() for _ in batch], np.int32)


def decoded_batches(encoded: Iterable[bytes], *, image_input: ImageInput, batch_size: int) -> Iterator[np.ndarray]:
    """Decode images in their order, a few batches ahead: float32 [n, height, width, channels] in 0..255.

    n is `batch_size` except in the last batch. It does not use tf.data, because tracing and starting a pipeline takes
    longer than decoding hundreds of images.
    """
    images = iter(encoded)
    decode = functools.partial(decoded, image_input=image_input)
    with ThreadPoolExecutor(os.cpu_count() or 1) as decoders:

        def decoding() -> Iterator[list[Future[np.ndarray]]]:
            while batch := list(islice(images, batch_size)):
                yield [decoders.submit(decode, each) for each in batch]

        try:
            yield from in_order(decoding(), _finished, is_full=lambda waiting: len(waiting) > BATCHES_AHEAD)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)


def _finished(batch: list[Future[np.ndarray]]) -> np.ndarray:
    return np.stack([image.result() for image in batch])


def decoded(encoded: bytes, *, image_input: ImageInput) -> np.ndarray:
    """Decode one image as float32 [height, width, channels] in 0..255. Raises the errors of `load_image`."""
    load = _compiled(load_plain_jpeg if is_plain_jpeg(encoded) else load_image, image_input)
    image: np.ndarray = load(tf.constant(encoded)).numpy()
    return image


def checked_and_decoded(
    data: bytes, *, key: str, image_input: ImageInput, limits: DatasetConfig
) -> tuple[bytes, np.ndarray] | RejectedImage:
    """Check a file to be predicted as an ingest does, and decode its image.

    Whatever can be transcoded is, whether or not the dataset's images were: a prediction stores nothing, so nothing
    speaks for a refusal. `key`: name of the file. `limits`: largest file size and number of pixels, and the background
    of transparent pixels. Returns the bytes that an ingest would store and float32 [height, width, channels] in 0..255,
    or the reason for which the image is rejected.
    """
    outcome = check_image(
        data,
        key=key,
        max_pixels=limits.max_pixels,
        max_file_size_bytes=limits.max_file_size_bytes,
        transcode=True,
        background=limits.background,
        depth=image_input.depth,
    )
    if isinstance(outcome, RejectedImage):
        return outcome
    return outcome.data, decoded(outcome.data, image_input=image_input)


@functools.lru_cache(maxsize=4)
def _compiled(load: Callable[[tf.Tensor, ImageInput], tf.Tensor], image_input: ImageInput) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def loaded(image_bytes: tf.Tensor) -> tf.Tensor:
        # Only CPUs decode, and a copy to a GPU for resizing costs more time than it saves.
        with tf.device("CPU"):
            return load(image_bytes, image_input)

    return loaded.get_concrete_function()


DEFAULT_WINDOW_SIZE_BYTES = 256 * 1024**2

# Encoded images, and for each image its label, whether it is real, and its position. Two components instead of four,
# because tf.data has a cost for each component of each row.
_ROWS = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 3], tf.int32))
Rows = tuple[np.ndarray, np.ndarray]
_COLUMNS = ["image", "label"]
_CALLS_PER_CPU = 4


def image_batches(
    store: Store,
    shards: Sequence[Shard],
    *,
    image_input: ImageInput,
    batch_size: int,
    replica_batch_size: int | None = None,
    worker: WorkerSlice | None = None,
    seed: int | None = None,
    epochs: Iterable[int] = (0,),
    start_step: int = 0,
    window_size_bytes: int = DEFAULT_WINDOW_SIZE_BYTES,
) -> tf.data.Dataset:
    """The batches of one worker, for several epochs in sequence.

    `batch_size` is global; `worker` takes its slice of each batch, divided into pieces of `replica_batch_size`
    (default: the whole slice). `epochs` may be infinite: a phase then builds its pipeline once and reads ahead across
    the end of an epoch. `start_step`: the first epoch starts at this batch; earlier ones are skipped without decoding.
    With `seed` None, rows are in stored order. The iterator raises CorruptObjectError if a shard's bytes do not match
    its digest.
    """
    worker = worker or WorkerSlice()
    own = worker.positions(batch_size)

    def chunks() -> Iterator[Rows]:
        first = start_step
        held: dict[str, pa.Table] = {}
        for epoch in epochs:
            plan = windows(shards, window_size_bytes=window_size_bytes, seed=seed, epoch=epoch)
            yield from _own_rows(store, plan, held, own=own, batch_size=batch_size, start_step=first)
            first = 0

    def decode(encoded: tf.Tensor, facts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return load_image(encoded, image_input), facts

    def named(images: tf.Tensor, facts: tf.Tensor) -> dict[str, tf.Tensor]:
        labels, real, positions = tf.unstack(facts, axis=1)
        return {"images": images, "labels": labels, "real": tf.cast(real, tf.float32), "positions": positions}

    # Read rows ahead while earlier rows are decoded.
    rows = tf.data.Dataset.from_generator(chunks, output_signature=_ROWS).prefetch(2).unbatch()
    # A fixed number, because AUTOTUNE chooses too few calls to keep all cores busy while Python hands over rows.
    images = rows.map(decode, num_parallel_calls=_CALLS_PER_CPU * (os.cpu_count() or 1), deterministic=True)
    batches = images.batch(replica_batch_size or len(own), drop_remainder=True)
    return batches.map(named).prefetch(tf.data.AUTOTUNE)


def _own_rows(
    store: Store, plan: Iterator[Window], held: dict[str, pa.Table], *, own: range, batch_size: int, start_step: int
) -> Iterator[Rows]:
    """Yield the rows at the positions `own` of every global batch, one window at a time, then the padding.

    `held`: shards of the last window by name, so that a dataset that fits into one window is read only once.
    """
    rows_seen = 0
    for window in plan:
        places = np.arange(window.start, window.start + len(window.order))
        rows_seen = window.start + len(window.order)
        positions = places % batch_size
        mine = (positions >= own.start) & (positions < own.stop) & (places >= start_step * batch_size)
        if mine.any():
            needed = {
                shard.name: held[shard.name] if shard.name in held else read_shard(store, shard, columns=_COLUMNS)
                for shard in window.shards
            }
            held.clear()
            held.update(needed)
            yield from _chunks(pa.concat_tables(needed.values()), window.order[mine], positions[mine])
    if rows_seen % batch_size:
        yield _filling([position for position in own if position >= rows_seen % batch_size])


def _filling(positions: Sequence[int]) -> Rows:
    """Padding rows, because every worker and replica must run the same number of full batches."""
    black_pixel = tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8)).numpy()
    facts = np.array([(0, 0, position) for position in positions], np.int32).reshape(-1, 3)
    return np.array([black_pixel] * len(positions), dtype=object), facts


def _chunks(table: pa.Table, rows: np.ndarray, positions: np.ndarray, size: int = 256) -> Iterator[Rows]:
    """Yield the chosen rows of a window in small pieces, so that the window is never copied as a whole."""
    images = BinaryColumn(table["image"])
    facts = np.stack([table["label"].to_numpy()[rows], np.ones(len(rows)), positions], axis=1).astype(np.int32)
    for start in range(0, len(rows), size):
        chosen = slice(start, start + size)
        yield np.array([images[row] for row in rows[chosen].tolist()], dtype=object), facts[chosen]


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
