"""The samples of an epoch, as the step takes them: images, a step at a time, or cached features, many steps a call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from transfer.config import ImageInput, TrainingConfig
from transfer.dataset.batches import image_batches
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.features.batches import CachedBatches, CachedSplit, Chunk, side_by_side
from transfer.storage import Store
from transfer.training.step import PhaseProgram

MAX_STEPS = 100
"""Steps between looks at the loss: each look waits for the device."""


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

    def train(self, program: PhaseProgram, *, step: int, global_step: int, limit: int) -> tuple[int, tf.Tensor]:  # noqa: ARG002 - one step a call
        """Train on the batch that begins at `step`. Returns 1 step, and what PhaseProgram answers for it."""
        real_images = min(self._batch_size, self._rows - step * self._batch_size)
        return 1, program.train_step(self._train, real_images=real_images, global_step=global_step)

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """Evaluate the whole validation split; what PhaseProgram answers. Empty where there is no such split."""
        return [program.evaluate_step(self._validation) for _ in range(self._validation_steps)]


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
        if validation:
            self._validation = CachedBatches(
                zip(itertools.repeat(0), itertools.repeat(validation), strict=False),
                batch_size=training.batch_size,
                worker=worker,
                max_steps=MAX_STEPS,
            )

    def train(self, program: PhaseProgram, *, step: int, global_step: int, limit: int) -> tuple[int, tf.Tensor]:  # noqa: ARG002 - the stream knows its place
        """Train on the next batches of the epoch, as many as fit into one call, at most `limit`.

        Returns how many steps they were and what PhaseProgram answers for them.
        """
        chunk = self._chunk(self._train, limit)
        return chunk.steps, program.train_steps(chunk, global_step=global_step)

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """The same, in as few calls as it fits into."""
        results, done = [], 0
        while done < self._validation_steps:
            chunk = self._chunk([self._validation], self._validation_steps - done)
            results.append(program.evaluate_steps(chunk))
            done += chunk.steps
        return results

    def _chunk(self, streams: Sequence[CachedBatches], limit: int) -> Chunk:
        """The next chunk of these streams; of a pack with an axis for them, even where there is but one."""
        chunks = [stream.next_chunk(limit) for stream in streams]
        return side_by_side(chunks) if self._is_of_pack else chunks[0]


Samples = ImageSamples | CachedSamples
"""What a phase trains and is validated on, in the order that (seed, epoch) decide."""
