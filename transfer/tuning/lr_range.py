"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186): some steps at rising learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from transfer.catalog import layout
from transfer.config import Config, ScheduleConfig
from transfer.dataset.manifest import Dataset
from transfer.runtime.memory import for_training, memory_explained
from transfer.runtime.progress import progress
from transfer.storage import Store
from transfer.training.loop import Training
from transfer.training.run import Run, run_id_for
from transfer.training.shared_models import SharedModels
from transfer.tuning.lr_curve import RateCurve, has_diverged


@dataclass(frozen=True)
class RangeTest(Run):
    """One range test of the last phase of its configuration, stored apart from the runs."""

    low: float
    high: float
    steps: int

    @property
    def folder(self) -> str:
        """Folder of the test in storage."""
        return layout.range_test_folder(self.id)


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


def measure_curve(test: RangeTest, dataset: Dataset, *, shared: SharedModels) -> RateCurve:
    """Take the test's steps, and stop where the loss grows out of bounds. Nothing that it trains is kept.

    Phases before the tested one are trained first, without early stopping, for their end is where it begins. Raises
    BackboneError when the base cannot be loaded, OutOfMemoryError, and what `warm_start` raises.
    """
    with memory_explained("The range test", advice=for_training(test.config)), shared.strategy.scope():
        phases = [phase.model_copy(update={"early_stopping": None}) for phase in test.config.phases]
        run = replace(test, config=test.config.model_copy(update={"phases": phases}))
        training = Training(run, dataset, shared=shared, keeps=False)
        while training.progress.phase < len(test.config.phases) - 1:
            training.next_epoch()
        return _measure(test, training)


def _measure(test: RangeTest, training: Training) -> RateCurve:
    """Take the steps of the test, each at a learning rate that is higher by the same factor."""
    rates = [float(rate) for rate in np.geomspace(test.low, test.high, test.steps)]
    losses: list[float] = []
    diverged = False
    program, done = training.program(), training.progress.global_step
    samples = training.samples(epochs=math.ceil(test.steps / training.steps), max_steps=1)
    with progress("range test", total=test.steps, unit="steps") as advance:
        while len(losses) < test.steps and not diverged:
            step = len(losses)
            program.set_learning_rate(rates[step])
            _, result = samples.train(program, step=step % training.steps, global_step=done + step, limit=1)
            losses.append(program.sum_over_workers([result])[0].mean_loss)
            diverged = has_diverged(losses)
            advance(1)
    finite = len(losses) if math.isfinite(losses[-1]) else len(losses) - 1
    return RateCurve(rates=tuple(rates[:finite]), losses=tuple(losses[:finite]), diverged=diverged)
