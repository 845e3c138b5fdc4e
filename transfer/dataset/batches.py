"""Decoded images from shards, as tensors: in the batches of an epoch, or in stored order.

`order.py` decides the order of an epoch, and `row_reader.py` reads its rows. Here they are decoded.

Each batch of an epoch is a dict:

- `images`: float32 [batch, height, width, channels], pixel values in 0..255
- `labels`: int32 [batch]
- `real`: float32 [batch], 1 for a row of the dataset, 0 for padding of the epoch's last batch
- `positions`: int32 [batch], position of each row in the global batch
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.config import DatasetConfig, ImageInput
from transfer.dataset.check import check_image, is_checked_by_decoding
from transfer.dataset.decode import fit_decoded, load_image, load_plain_jpeg
from transfer.dataset.manifest import Shard
from transfer.dataset.order import Order, WorkerSlice
from transfer.dataset.orientation import is_plain_jpeg
from transfer.dataset.refusals import RejectedImage
from transfer.dataset.row_groups import BinaryColumn
from transfer.dataset.row_reader import RowReader
from transfer.dataset.shards import read_shard
from transfer.runtime.parallel import in_order
from transfer.storage import Store

BATCHES_AHEAD = 2
"""Number of batches that are decoded ahead of the consumer."""


def stored_images(
    store: Store, shards: Sequence[Shard], *, image_input: ImageInput, batch_size: int
) -> Generator[tuple[np.ndarray, np.ndarray]]:
    """Yield all images and labels of some shards in stored order, for passes that read every image once.

    Yields float32 [n, height, width, channels] in 0..255 and int32 [n]; n is `batch_size` except in the last batch. At
    most three shards are in memory. Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    labels: deque[int] = deque()

    def images(tables: Iterable[Any]) -> Iterator[bytes]:
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
    or the reason for which the image is rejected. It may be called from several threads.
    """
    limited = {"max_pixels": limits.max_pixels, "max_file_size_bytes": limits.max_file_size_bytes}
    if is_checked_by_decoding(data, **limited):
        try:
            return data, decoded(data, image_input=image_input)
        except tf.errors.OpError:
            pass  # The check tells why.
    outcome = check_image(
        data,
        key=key,
        **limited,
        transcode=True,
        background=limits.background,
        depth=image_input.depth,
        with_pixels=True,
    )
    if isinstance(outcome, RejectedImage):
        return outcome
    if outcome.pixels is not None:
        pixels = tf.constant(outcome.pixels)
        fit = _compiled(fit_decoded, image_input, tf.TensorSpec([None, None, 3], pixels.dtype))
        image: np.ndarray = fit(pixels).numpy()
        return outcome.data, image
    return outcome.data, decoded(outcome.data, image_input=image_input)


_ENCODED = tf.TensorSpec([], tf.string)


@functools.lru_cache(maxsize=8)
def _compiled(
    load: Callable[[tf.Tensor, ImageInput], tf.Tensor], image_input: ImageInput, image: tf.TensorSpec = _ENCODED
) -> Any:
    @tf.function(input_signature=[image], autograph=False)
    def loaded(image: tf.Tensor) -> tf.Tensor:
        # Only CPUs decode, and a copy to a GPU for resizing costs more time than it saves.
        with tf.device("CPU"):
            return load(image, image_input)

    return loaded.get_concrete_function()


DEFAULT_WINDOW_SIZE_BYTES = 256 * 1024**2

# Encoded images, and for each image its label, whether it is real, and its position. Two components instead of four,
# because tf.data has a cost for each component of each row.
_ROWS = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 3], tf.int32))
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
    With `seed` None, nothing is random. The iterator raises CorruptObjectError for bytes that do not match their
    digest.
    """
    worker = worker or WorkerSlice()
    own = worker.positions(batch_size)
    order = Order(shards, batch_size=batch_size, window_size_bytes=window_size_bytes, seed=seed)
    reader = RowReader(store, shards, order)
    black_pixel = tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8)).numpy()

    def own_rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in reader.rows(epochs, own=own, start_step=start_step):
            rows.images[~rows.is_real] = black_pixel
            yield rows.images, np.stack([rows.labels, rows.is_real, rows.positions], axis=1).astype(np.int32)

    def decode(encoded: tf.Tensor, facts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return load_image(encoded, image_input), facts

    def named(images: tf.Tensor, facts: tf.Tensor) -> dict[str, tf.Tensor]:
        labels, real, positions = tf.unstack(facts, axis=1)
        return {"images": images, "labels": labels, "real": tf.cast(real, tf.float32), "positions": positions}

    # Read rows ahead while earlier rows are decoded.
    rows = tf.data.Dataset.from_generator(own_rows, output_signature=_ROWS).prefetch(2).unbatch()
    # A fixed number, because AUTOTUNE chooses too few calls to keep all cores busy while Python hands over rows.
    images = rows.map(decode, num_parallel_calls=_CALLS_PER_CPU * (os.cpu_count() or 1), deterministic=True)
    batches = images.batch(replica_batch_size or len(own), drop_remainder=True)
    return batches.map(named).prefetch(tf.data.AUTOTUNE)
