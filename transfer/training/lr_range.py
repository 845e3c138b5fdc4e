"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186): a few steps at rising learning rates.

lr_find/<id>/inputs/…, uses/…   as of a run: what the phases train on
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from transfer.augmentation.layers import Augmentation
from transfer.backbone.precision import set_precision
from transfer.config import Config, PhaseConfig, ScheduleConfig
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.progress import progress
from transfer.storage import Store
from transfer.training.balance import class_weights
from transfer.training.inputs import Inputs
from transfer.training.model import TransferModel, build_model
from transfer.training.rate_curve import RateCurve, has_diverged
from transfer.training.run import Run, run_id_for
from transfer.training.samples import MAX_STEPS, ImageSamples, KeptSamples, Samples
from transfer.training.step import PhaseProgram
from transfer.training.warm_start import warm_start


@dataclass(frozen=True)
class RangeTest(Run):
    """One range test of the last phase of its configuration, stored apart from the runs."""

    low: float
    high: float
    steps: int

    @property
    def prefix(self) -> str:
        """Folder of the test in storage."""
        return f"lr_find/{self.id}"


def range_test_of(
    store: Store, config: Config, dataset: Dataset, *, phase: int, low: float, high: float, steps: int
) -> RangeTest:
    """The test of phase `phase` (from 0) with `steps` learning rates from `low` to `high`.

    Its id is decided by all that its curve depends on.
    """
    # Its own learning rate and schedule are not used, so that the test is found again once they are changed.
    changes = {"learning_rate": low, "schedule": ScheduleConfig(), "early_stopping": None}
    tested = config.phases[phase].model_copy(update=changes)
    config = config.model_copy(update={"phases": [*config.phases[:phase], tested]})
    name = f"{run_id_for(config, dataset)}-{low:g}-{high:g}-{steps}"
    return RangeTest(store, name, config, dataset.name, dataset.number, low, high, steps)


def measure_curve(test: RangeTest, dataset: Dataset, *, strategy: tf.distribute.Strategy) -> RateCurve:
    """Take the test's steps, and stop where the loss grows out of bounds. Nothing that it trains is kept.

    Phases before the tested one are trained first, without early stopping, for their end is where it begins. Raises
    BackboneError when the base cannot be loaded, and what `warm_start` raises.
    """
    with strategy.scope():
        set_precision(test.config.training.mixed_precision)
        model = build_model(test.config, dataset.classes)
        warm_start(model.head, test, dataset)
        inputs = Inputs(test, dataset, model)
        inputs.extract()
        bench = _Bench(test, dataset, model, inputs)
        last = len(test.config.phases) - 1
        for index in range(last):
            bench.train(index)
        return bench.measure(last)


class _RisingRate(keras.optimizers.schedules.LearningRateSchedule):
    """From `low` in the first of `steps` steps to `high` in the last, each time by the same factor."""

    def __init__(self, low: float, high: float, steps: int) -> None:
        self.low = low
        self.high = high
        self.steps = steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return self.low * tf.pow(self.high / self.low, tf.cast(step, tf.float32) / max(self.steps - 1, 1))

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass
class _Bench:
    """What the phases of a test share. `done`: steps that were taken so far."""

    test: RangeTest
    dataset: Dataset
    model: TransferModel
    inputs: Inputs
    done: int = 0

    def train(self, index: int) -> None:
        """Train a phase to its end."""
        phase = self.test.config.phases[index]
        program, samples = self._program(phase), self._samples(index, max_steps=MAX_STEPS)
        with progress(f"phase {index + 1}", total=phase.epochs * self.dataset.rows("train")) as advance:
            for _ in range(phase.epochs):
                step = 0
                while step < self._epoch_steps:
                    limit = min(MAX_STEPS, self._epoch_steps - step)
                    taken, _result = samples.train(program, step=step, global_step=self.done, limit=limit)
                    step += taken
                    self.done += taken
                advance(self.dataset.rows("train"))

    def measure(self, index: int) -> RateCurve:
        """Take the steps of the test on a phase."""
        test = self.test
        program, samples = self._program(test.config.phases[index]), self._samples(index, max_steps=1)
        rising = _RisingRate(test.low, test.high, test.steps)
        program.optimizer.learning_rate = rising
        rates: list[float] = []
        losses: list[float] = []
        diverged = False
        with progress("range test", total=test.steps, unit="steps") as advance:
            while len(losses) < test.steps and not diverged:
                step = len(losses)
                _, result = samples.train(program, step=step % self._epoch_steps, global_step=self.done + step, limit=1)
                rates.append(float(rising(step)))
                losses.append(program.sum_over_workers([result]).mean_loss)
                diverged = has_diverged(losses)
                advance(1)
        finite = len(losses) if math.isfinite(losses[-1]) else len(losses) - 1
        return RateCurve(rates=tuple(rates[:finite]), losses=tuple(losses[:finite]), diverged=diverged)

    @property
    def _epoch_steps(self) -> int:
        return steps_per_epoch(self.dataset.rows("train"), self.test.config.training.batch_size)

    def _program(self, phase: PhaseConfig) -> PhaseProgram:
        config = self.test.config
        augment = phase.augment and config.augmentation.is_active
        return PhaseProgram(
            self.model.split(phase.unfreeze),
            phase=phase,
            training=config.training,
            class_weights=class_weights(config.training.class_weights, self.dataset),
            augmentation=Augmentation(config.augmentation) if augment else None,
            steps_per_epoch=self._epoch_steps,
        )

    def _samples(self, index: int, *, max_steps: int) -> Samples:
        config = self.test.config
        rest: dict[str, Any] = {
            "training": config.training,
            "worker": WorkerSlice(),
            "epochs": itertools.count(sum(phase.epochs for phase in config.phases[:index])),
            "start_step": 0,
        }
        kept = self.inputs.open(index)
        if kept is not None:
            return KeptSamples(kept.train, kept.validation, **rest, max_steps=max_steps)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        image_size = self.model.backbone.image_size
        return ImageSamples(self.test.store, self.dataset, image_size=image_size, replicas=replicas, **rest)
