"""Shards → batches of decoded images, as tensors.

Each batch is a dict:

- `images`: float32 [batch, image_size, image_size, 3], pixel values in 0..255
- `labels`: int32 [batch]
- `real`: float32 [batch], 1 for a row of the dataset, 0 for one that only fills up the epoch's last batch
- `positions`: int32 [batch], each row's place in the global batch
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa
import tensorflow as tf

from transfer.dataset.decode import load_image
from transfer.dataset.manifest import Shard
from transfer.dataset.order import Window, WorkerSlice, windows
from transfer.dataset.shards import read_shard
from transfer.storage import Store

DEFAULT_WINDOW_SIZE_BYTES = 256 * 1024**2

_ROWS = {
    "image": tf.TensorSpec([None], tf.string),
    "labels": tf.TensorSpec([None], tf.int32),
    "real": tf.TensorSpec([None], tf.float32),
    "positions": tf.TensorSpec([None], tf.int32),
}
Rows = dict[str, np.ndarray]


def image_batches(
    store: Store,
    shards: Sequence[Shard],
    *,
    image_size: int,
    batch_size: int,
    replica_batch_size: int | None = None,
    worker: WorkerSlice | None = None,
    seed: int | None = None,
    epochs: Iterable[int] = (0,),
    start_step: int = 0,
    window_size_bytes: int = DEFAULT_WINDOW_SIZE_BYTES,
) -> tf.data.Dataset:
    """Batches of some epochs, one after the other, as one worker sees them.

    `batch_size` is global; `worker` takes its slice of each batch, cut into pieces of `replica_batch_size` (default:
    the whole slice). `epochs` may go on without end: one stream for a whole phase builds its pipeline once, and reads
    ahead over the end of an epoch. `start_step` leaves out the batches of the first epoch before it, without decoding
    them. `seed` None keeps the stored order. Raises CorruptObjectError, from the iterator, when a shard's bytes are not
    the ones its digest promises.
    """
    worker = worker or WorkerSlice()
    own = worker.positions(batch_size)

    def chunks() -> Iterator[Rows]:
        first = start_step
        for epoch in epochs:
            plan = windows(shards, window_size_bytes=window_size_bytes, seed=seed, epoch=epoch)
            yield from _own_rows(store, plan, own=own, batch_size=batch_size, start_step=first)
            first = 0

    def decode(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        encoded = row.pop("image")
        return {"images": load_image(encoded, image_size), **row}

    rows = tf.data.Dataset.from_generator(chunks, output_signature=_ROWS).unbatch()
    images = rows.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return images.batch(replica_batch_size or len(own), drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _own_rows(store: Store, plan: Iterator[Window], *, own: range, batch_size: int, start_step: int) -> Iterator[Rows]:
    """Yield the rows at the positions `own` of every global batch, a window at a time, then what fills the last."""
    rows_seen = 0
    for window in plan:
        places = np.arange(window.start, window.start + len(window.order))
        rows_seen = window.start + len(window.order)
        positions = places % batch_size
        mine = (positions >= own.start) & (positions < own.stop) & (places >= start_step * batch_size)
        if mine.any():
            tables = [read_shard(store, shard, columns=["image", "label"]) for shard in window.shards]
            yield from _chunks(pa.concat_tables(tables), window.order[mine], positions[mine])
    if rows_seen % batch_size:
        yield _filling([position for position in own if position >= rows_seen % batch_size])


def _filling(positions: Sequence[int]) -> Rows:
    """Rows that are no image of the dataset: every worker and replica must run the same number of full batches."""
    black_pixel = tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8)).numpy()
    return {
        "image": np.array([black_pixel] * len(positions), dtype=object),
        "labels": np.zeros(len(positions), np.int32),
        "real": np.zeros(len(positions), np.float32),
        "positions": np.array(positions, np.int32),
    }


def _chunks(table: pa.Table, rows: np.ndarray, positions: np.ndarray, size: int = 64) -> Iterator[Rows]:
    """Cut the chosen rows of a window into pieces small enough to hand over without a second copy of the window."""
    images = _BinaryColumn(table["image"])
    labels = table["label"].to_numpy().astype(np.int32)
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        yield {
            "image": np.array([images[row] for row in chosen.tolist()], dtype=object),
            "labels": labels[chosen],
            "real": np.ones(len(chosen), np.float32),
            "positions": positions[start : start + size].astype(np.int32),
        }


class _BinaryColumn:
    """Values of a column of bytes by row. Arrow's own `take` takes twenty times as long for values of 20 KB."""

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
