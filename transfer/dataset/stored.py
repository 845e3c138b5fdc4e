"""Shards → decoded images in the order in which they are stored, each once, without building a tf.data pipeline.

For the passes that see every image once: tracing and starting a pipeline takes longer than decoding hundreds of images.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from transfer.dataset.batches import BinaryColumn
from transfer.dataset.decode import load_image, load_plain_jpeg
from transfer.dataset.manifest import Shard
from transfer.dataset.orientation import is_plain_jpeg
from transfer.dataset.shards import read_shard
from transfer.storage import Store

BATCHES_AHEAD = 2
"""Batches that are decoded while the reader still works on the one before."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def stored_images(
    store: Store, shards: Sequence[Shard], *, image_size: int, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All images of some shards as they are stored, and their labels.

    Yields float32 [n, image_size, image_size, 3] in 0..255 and int32 [n], n below `batch_size` at the very end only.
    Holds at most three shards in memory. Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    cpus = os.cpu_count() or 1
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(cpus) as decoders:
        try:
            tables = _ahead(reader, lambda shard: read_shard(store, shard, columns=["image", "label"]), shards, count=1)
            rows = (row for table in tables for row in _rows(table))
            decode = functools.partial(decoded, image_size=image_size)
            waiting: deque[tuple[list[Future[np.ndarray]], np.ndarray]] = deque()
            while batch := list(islice(rows, batch_size)):
                encoded, labels = zip(*batch, strict=True)
                futures = [decoders.submit(decode, each) for each in encoded]
                waiting.append((futures, np.array(labels, np.int32)))
                if len(waiting) > BATCHES_AHEAD:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)


def _rows(table: Any) -> Iterator[tuple[bytes, int]]:
    images = BinaryColumn(table["image"])
    for row, label in enumerate(table["label"].to_numpy().tolist()):
        yield images[row], label


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Answer], items: Iterable[Item], *, count: int
) -> Iterator[Answer]:
    """Answers in order; up to `count` of them are worked on while the reader has the one before."""
    waiting: deque[Future[Answer]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finished(images: list[Future[np.ndarray]], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([image.result() for image in images]), labels


def decoded(encoded: bytes, *, image_size: int) -> np.ndarray:
    """One image as float32 [image_size, image_size, 3] in 0..255. Raises what `load_image` raises."""
    load = _compiled(load_plain_jpeg if is_plain_jpeg(encoded) else load_image, image_size)
    image: np.ndarray = load(tf.constant(encoded)).numpy()
    return image


@functools.lru_cache(maxsize=4)
def _compiled(load: Callable[[tf.Tensor, int], tf.Tensor], image_size: int) -> Any:
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def loaded(image_bytes: tf.Tensor) -> tf.Tensor:
        # No other device decodes, and a trip to one for resizing costs more than it saves.
        with tf.device("CPU"):
            return load(image_bytes, image_size)

    return loaded.get_concrete_function()
