"""What a phase trains on: images, step by step, or kept activations, many steps a call."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from transfer.activations.batches import KeptBatches, KeptSplit
from transfer.config import TrainingConfig
from transfer.dataset.batches import image_batches
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.storage import Store
from transfer.training.step import PhaseProgram

MAX_STEPS = 100
"""Steps between looks at the loss: each look waits for the device."""


class Samples(ABC):
    """The training and the validation split of a phase, in the order that (seed, epoch) decide."""

    @abstractmethod
    def train(self, program: PhaseProgram, *, step: int, global_step: int, limit: int) -> tuple[int, tf.Tensor]:
        """Train on the next batches of the epoch, which begin at `step`: at least one step and at most `limit`.

        Returns how many steps they were and what PhaseProgram answers for them.
        """

    @abstractmethod
    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """Evaluate the whole validation split; what PhaseProgram answers. Empty where there is no such split."""


class ImageSamples(Samples):
    """Images, decoded and run through the whole network in every step."""

    def __init__(
        self,
        store: Store,
        dataset: Dataset,
        *,
        image_size: int,
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
                    image_size=image_size,
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
        """Train on one batch."""
        real_images = min(self._batch_size, self._rows - step * self._batch_size)
        return 1, program.train_step(self._train, real_images=real_images, global_step=global_step)

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """Evaluate the validation split, image by image."""
        return [program.evaluate_step(self._validation) for _ in range(self._validation_steps)]


class KeptSamples(Samples):
    """What is kept of the frozen part: no image is read, and the frozen part does not run."""

    def __init__(
        self,
        views: Sequence[KeptSplit],
        validation: KeptSplit | None,
        *,
        training: TrainingConfig,
        worker: WorkerSlice,
        epochs: Iterable[int],
        start_step: int,
        max_steps: int = MAX_STEPS,
    ) -> None:
        """`views`: the training split, once for each kept view; epoch e trains on view e modulo their number.

        `max_steps`: most steps of training in one call.
        """
        self._train = KeptBatches(
            ((epoch, views[epoch % len(views)]) for epoch in epochs),
            batch_size=training.batch_size,
            worker=worker,
            seed=training.seed,
            start_step=start_step,
            max_steps=max_steps,
        )
        self._validation_steps = steps_per_epoch(len(validation), training.batch_size) if validation else 0
        if validation:
            self._validation = KeptBatches(
                zip(itertools.repeat(0), itertools.repeat(validation), strict=False),
                batch_size=training.batch_size,
                worker=worker,
                max_steps=MAX_STEPS,
            )

    def train(self, program: PhaseProgram, *, step: int, global_step: int, limit: int) -> tuple[int, tf.Tensor]:  # noqa: ARG002 - the stream knows its place
        """Train on as many batches as fit into one call."""
        chunk = self._train.next_chunk(limit)
        return chunk.steps, program.train_steps(chunk, global_step=global_step)

    def validate(self, program: PhaseProgram) -> list[tf.Tensor]:
        """Evaluate the validation split in as few calls as it fits into."""
        results, done = [], 0
        while done < self._validation_steps:
            chunk = self._validation.next_chunk(self._validation_steps - done)
            results.append(program.evaluate_steps(chunk))
            done += chunk.steps
        return results
