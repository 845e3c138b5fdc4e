"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186): a few steps at rising learning rates.

lr_find/<id>/inputs/…, uses/…   as of a run: what the phases train on
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.config import Config, PhaseConfig, ScheduleConfig
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.memory import for_training, memory_explained
from transfer.progress import progress
from transfer.storage import Store
from transfer.training.balance import class_weights
from transfer.training.inputs import Inputs
from transfer.training.rate_curve import RateCurve, has_diverged
from transfer.training.run import Run, run_id_for
from transfer.training.samples import MAX_STEPS, ImageSamples, KeptSamples, Samples
from transfer.training.step import PhaseProgram
from transfer.training.warm_start import warm_start
from transfer.training.workbench import Workbench


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
    name = f"{run_id_for(config, dataset)}-{low}-{high}-{steps}"
    return RangeTest(store, name, config, dataset.name, dataset.number, low, high, steps)


def measure_curve(test: RangeTest, dataset: Dataset, *, workbench: Workbench) -> RateCurve:
    """Take the test's steps, and stop where the loss grows out of bounds. Nothing that it trains is kept.

    Phases before the tested one are trained first, without early stopping, for their end is where it begins. Raises
    BackboneError when the base cannot be loaded, OutOfMemoryError, and what `warm_start` raises.
    """
    with memory_explained("The range test", advice=for_training(test.config)), workbench.strategy.scope():
        bench = _Bench(test, dataset, workbench)
        last = len(test.config.phases) - 1
        for index in range(last):
            bench.train(index)
        return bench.measure(last)


class _Bench:
    """A test under way, on a workbench: its phases follow each other."""

    def __init__(self, test: RangeTest, dataset: Dataset, workbench: Workbench) -> None:
        self._test = test
        self._dataset = dataset
        self._workbench = workbench
        workbench.take_turn(self)
        self._model = workbench.model(test.config, dataset.classes)
        warm_start(self._model.head, test, dataset)
        trained = self._model.variables_of([phase.unfreeze for phase in test.config.phases])
        workbench.will_train(self._model, trained)
        self._inputs = Inputs(test, dataset, self._model)
        self._inputs.extract()
        self._epoch_steps = steps_per_epoch(dataset.rows("train"), test.config.training.batch_size)
        self._done = 0
        """Steps that were taken so far."""

    def suspend(self) -> None:
        """Nothing to copy: nobody else has a turn before the test is over."""

    def train(self, index: int) -> None:
        """Train a phase to its end."""
        phase = self._test.config.phases[index]
        program, samples = self._program(phase), self._samples(index, max_steps=MAX_STEPS)
        with progress(f"phase {index + 1}", total=phase.epochs * self._dataset.rows("train")) as advance:
            for _ in range(phase.epochs):
                step = 0
                while step < self._epoch_steps:
                    limit = min(MAX_STEPS, self._epoch_steps - step)
                    taken, _result = samples.train(program, step=step, global_step=self._done, limit=limit)
                    step += taken
                    self._done += taken
                advance(self._dataset.rows("train"))

    def measure(self, index: int) -> RateCurve:
        """Take the steps of the test on a phase, each at a learning rate that is higher by the same factor."""
        test = self._test
        program, samples = self._program(test.config.phases[index]), self._samples(index, max_steps=1)
        rates = [float(rate) for rate in np.geomspace(test.low, test.high, test.steps)]
        losses: list[float] = []
        diverged = False
        with progress("range test", total=test.steps, unit="steps") as advance:
            while len(losses) < test.steps and not diverged:
                step = len(losses)
                program.set_learning_rate(rates[step])
                at = {"step": step % self._epoch_steps, "global_step": self._done + step}
                _, result = samples.train(program, **at, limit=1)
                losses.append(program.sum_over_workers([result]).mean_loss)
                diverged = has_diverged(losses)
                advance(1)
        finite = len(losses) if math.isfinite(losses[-1]) else len(losses) - 1
        return RateCurve(rates=tuple(rates[:finite]), losses=tuple(losses[:finite]), diverged=diverged)

    def _program(self, phase: PhaseConfig) -> PhaseProgram:
        config = self._test.config
        weights = class_weights(config.training.class_weights, self._dataset)
        return self._workbench.program(
            self._model, phase, config, class_weights=weights, steps_per_epoch=self._epoch_steps
        )

    def _samples(self, index: int, *, max_steps: int) -> Samples:
        config = self._test.config
        rest: dict[str, Any] = {
            "training": config.training,
            "worker": WorkerSlice(),
            "epochs": itertools.count(sum(phase.epochs for phase in config.phases[:index])),
            "start_step": 0,
        }
        kept = self._inputs.open(index)
        if kept is not None:
            return KeptSamples(kept.train, kept.validation, **rest, max_steps=max_steps)
        replicas = self._workbench.strategy.num_replicas_in_sync
        image_size = self._model.backbone.image_size
        return ImageSamples(self._test.store, self._dataset, image_size=image_size, replicas=replicas, **rest)
