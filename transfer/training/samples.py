"""The samples of an epoch, as the step takes them: images, a step at a time, or cached features, many steps a call.

Cached features come in one global permutation by (seed, epoch) over all rows: any row of a memory-mapped file is as
near as any other. Images come in the same order if their split fits into the shuffle window; otherwise they go through
lanes (`dataset/order.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from transfer.config import ImageInput, TrainingConfig
from transfer.dataset.batches import image_batches
from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.order import WorkerSlice, permutation, steps_per_epoch
from transfer.features.store import CachedRows
from transfer.storage import Store
from transfer.training.step import Chunk, PhaseProgram

MAX_STEPS = 100
"""Steps between looks at the loss: each look waits for the device."""
CHUNK_SIZE_BYTES = 32 * 1024**2
"""Features that are copied out of the maps at a time, for all the steps that they last."""


class ImageSamples:
    """Both splits of a phase as images, decoded and run through the whole network in every step."""

    def __init__(
        self,
        store: Store,
        dataset: Dataset,
        *,
        image_input: ImageInput,
        training: TrainingConfig,
        worker: WorkerSlice,
        replicas: int,
        epochs: Iterable[int],
        start_step: int,
    ) -> None:
        """`replicas`: of all workers together. `epochs`: numbers of the epochs to come; each decides an order."""

        def batches(split: str, **order: Any) -> Iterator[dict[str, tf.Tensor]]:
            return iter(
                image_batches(
                    store,
                    dataset.shards_of(split),
                    image_input=image_input,
                    batch_size=training.batch_size,
                    replica_batch_size=training.batch_size // replicas,
                    worker=worker,
                    window_size_bytes=training.shuffle_window_bytes,
                    **order,
                )
            )

        self._batch_size = training.batch_size
        self._rows = dataset.rows("train")
        self._validation_steps = steps_per_epoch(dataset.rows("validation"), training.batch_size)
        # One stream a phase: building a pipeline takes longer than an epoch of a small dataset.
        self._train = batches("train", seed=training.seed, epochs=epochs, start_step=start_step)
        self._validation = batches("validation", epochs=itertools.repeat(0))

    def train(self, program: PhaseProgram, steps: range, *, global_step: int) -> Iterator[tuple[int, tf.Tensor]]:
        """Train on the next batches, which are these steps of an epoch; the first of them is the run's `global_step`.

        Yields for each call of the program how many steps it took, and what PhaseProgram answers for them.
        """
        for done, step in enumerate(steps):
            real_images = min(self._batch_size, self._rows - step * self._batch_size)
            yield 1, program.train_step(self._train, real_images=real_images, global_step=global_step + done)

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """Evaluate the whole validation split; what PhaseProgram answers. Empty where there is no such split."""
        return [program.evaluate_step(self._validation) for _ in range(self._validation_steps)]


class CachedSplit:
    """The cached features of all images of a split as one long array, which is never in memory as a whole.

    `shards` and `rows` belong together, in the same order. `only`: int64 [n], if given, which of their images count.
    """

    def __init__(self, shards: Sequence[Shard], rows: Sequence[CachedRows], *, only: np.ndarray | None = None) -> None:
        self._shards = list(shards)
        self._is_part = only is not None
        self.shape = rows[0].shape
        self._parts = [part for each in rows for part in each.stored_parts()]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        labels = np.concatenate([each.labels for each in rows])
        self.labels = labels if only is None else labels[only]
        self._stored = _stored_places(rows, only)
        self.dtype = self._parts[0].dtype
        self.row_bytes = self._parts[0][0].nbytes

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows (int64 [n], counted over all that are there) into `out` [n, *shape], in the order given."""
        rows = rows if self._stored is None else self._stored[rows]
        part_of = np.searchsorted(self._starts, rows, side="right") - 1
        by_part = np.argsort(part_of, kind="stable")
        edges = np.flatnonzero(np.diff(part_of[by_part], prepend=-1, append=-1))
        for start, end in itertools.pairwise(edges):
            places = by_part[start:end]
            part = part_of[places[0]]
            out[places] = self._parts[part][rows[places] - self._starts[part]]

    def order(self, *, seed: int | None, epoch: int) -> np.ndarray:
        """Rows, int64 [rows], in the order in which an epoch visits them; `seed` None: as they are stored."""
        if self._is_part:
            return np.arange(len(self)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))
        return permutation(self._shards, seed=seed, epoch=epoch)


def _stored_places(rows: Sequence[CachedRows], only: np.ndarray | None) -> np.ndarray | None:
    """Where the features of the images that count are among all stored ones, int64 [n]; None if all count."""
    if all(each.live is None for each in rows):
        return only
    stored = [sum(map(len, each.stored_parts())) for each in rows]
    starts = np.cumsum([0, *stored])
    live = [np.arange(count) if each.live is None else each.live for each, count in zip(rows, stored, strict=True)]
    places = np.concatenate([start + each for start, each in zip(starts, live, strict=False)])
    return places if only is None else places[only]


class CachedBatches:
    """The batches of some epochs, one after the other, as one worker sees them.

    `epochs` yields for each epoch its number, which decides the order, and the features of the view to train on.
    `seed` None keeps the stored order. `start_step` leaves out the batches of the first epoch before it. `streams`: so
    many share the room for a chunk.
    """

    def __init__(
        self,
        epochs: Iterable[tuple[int, CachedSplit]],
        *,
        batch_size: int,
        worker: WorkerSlice | None = None,
        seed: int | None = None,
        start_step: int = 0,
        max_steps: int,
        streams: int = 1,
    ) -> None:
        self._epochs = iter(epochs)
        self._batch_size = batch_size
        self._own = (worker or WorkerSlice()).positions(batch_size)
        self._seed = seed
        self._step = start_step
        self._max_steps = max_steps
        self._room = CHUNK_SIZE_BYTES // streams
        self._split: CachedSplit | None = None
        self._order = np.empty(0, np.int64)

    def next_chunk(self, limit: int) -> Chunk:
        """The next batches of the present epoch, or of the next one after its end; at most `limit` steps."""
        if self._split is None:
            epoch, self._split = next(self._epochs)
            self._order = self._split.order(seed=self._seed, epoch=epoch)
        split = self._split
        epoch_steps = steps_per_epoch(len(split), self._batch_size)
        capacity = min(max(self._room // (len(self._own) * split.row_bytes), 1), self._max_steps, epoch_steps)
        steps = min(capacity, limit, epoch_steps - self._step)
        own, starts = np.array(self._own), np.arange(self._step, self._step + steps) * self._batch_size
        places = starts[:, None] + own
        is_real = places < len(split)
        features = np.zeros((capacity, len(own), *split.shape), split.dtype)
        labels = np.zeros((capacity, len(own)), np.int32)
        real = np.zeros((capacity, len(own)), np.float32)
        rows = self._order[places[is_real]]
        # Only an epoch's last batch is short, so the real rows come first.
        split.take(rows, features.reshape(-1, *split.shape)[: len(rows)])
        labels.reshape(-1)[: len(rows)] = split.labels[rows]
        real[:steps] = is_real
        real_images = np.ones(capacity, np.float32)
        real_images[:steps] = np.minimum(self._batch_size, len(split) - starts)
        self._step += steps
        if self._step == epoch_steps:
            self._step, self._split = 0, None
        return Chunk(features, labels, real, own.astype(np.int32), real_images, steps)


class CachedSamples:
    """Cached features: no image is read, and the frozen part does not run."""

    def __init__(
        self,
        views: Sequence[CachedSplit],
        validation: CachedSplit | None,
        *,
        training: TrainingConfig,
        worker: WorkerSlice,
        epochs: Sequence[int],
        start_step: int,
        max_steps: int = MAX_STEPS,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """`views`: the training split, once for each cached view; epoch e trains on view e modulo their number.

        `max_steps`: most steps of training in one call. `seeds`: of the streams that the trials of a pack read.
        """
        self._is_of_pack = seeds is not None
        seeds = [training.seed] if seeds is None else seeds
        self._train = [
            CachedBatches(
                ((epoch, views[epoch % len(views)]) for epoch in epochs),
                batch_size=training.batch_size,
                worker=worker,
                seed=seed,
                start_step=start_step,
                max_steps=max_steps,
                streams=len(seeds),
            )
            for seed in seeds
        ]
        self._validation_steps = steps_per_epoch(len(validation), training.batch_size) if validation else 0
        self._validation = [
            CachedBatches(
                zip(itertools.repeat(0), itertools.repeat(each), strict=False),
                batch_size=training.batch_size,
                worker=worker,
                max_steps=MAX_STEPS,
            )
            for each in ([validation] if validation else [])
        ]

    def train(self, program: PhaseProgram, steps: range, *, global_step: int) -> Iterator[tuple[int, tf.Tensor]]:
        """The same, in as few calls as the steps fit into."""
        for chunk in self._chunks(self._train, len(steps)):
            yield chunk.steps, program.train_steps(chunk, global_step=global_step)
            global_step += chunk.steps

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """The same, in as few calls as it fits into."""
        return [program.evaluate_steps(chunk) for chunk in self._chunks(self._validation, self._validation_steps)]

    def _chunks(self, streams: Sequence[CachedBatches], steps: int) -> Iterator[Chunk]:
        """The next `steps` of these streams; of a pack with an axis for them, even where there is but one."""
        while steps:
            chunks = [stream.next_chunk(steps) for stream in streams]
            chunk = side_by_side(chunks) if self._is_of_pack else chunks[0]
            yield chunk
            steps -= chunk.steps


def side_by_side(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks of several streams as one: features, labels and real [capacity, streams, rows, …]."""

    def stacked(*arrays: np.ndarray) -> np.ndarray:
        return np.stack(arrays, axis=1)

    return replace(
        chunks[0],
        features=stacked(*(chunk.features for chunk in chunks)),
        labels=stacked(*(chunk.labels for chunk in chunks)),
        real=stacked(*(chunk.real for chunk in chunks)),
    )


Samples = ImageSamples | CachedSamples
"""What a phase trains and is validated on, in the order that (seed, epoch) decide."""
