"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186): some steps at rising learning rates.

It is made for one phase, or found where it was made before, and recorded.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from transfer.catalog import layout
from transfer.config import Config, ScheduleConfig
from transfer.dataset.manifest import Dataset
from transfer.errors import AlreadyExistsError, ConfigError
from transfer.runtime.memory import for_training, memory_explained
from transfer.runtime.progress import progress
from transfer.storage import Store, put_content, put_document
from transfer.training.run import Run, run_id_for
from transfer.tuning.lr_curve import MIN_STEPS, FoundRate, RateCurve, StoredRate, has_diverged, read_rate

if TYPE_CHECKING:
    from transfer.training.shared_models import SharedModels

logger = logging.getLogger(__name__)


def check_range(config: Config, *, phase: int, low: float, high: float, steps: int) -> None:
    """Raise ConfigError for a test that cannot be made: no such phase (from 0), no range, too few steps."""
    if phase not in range(len(config.phases)):
        raise ConfigError(
            f"Phase {phase} is asked for, and the configuration has {len(config.phases)}.",
            advice="Phases count from 0.",
        )
    if not 0 < low < high:
        raise ConfigError(
            f"The learning rate is to rise from {low:g} to {high:g}.", advice="Both are above 0, the second is higher."
        )
    if steps < MIN_STEPS:
        raise ConfigError(
            f"{steps} steps are asked for, and a curve takes at least {MIN_STEPS}.", advice="200 is good."
        )


def find_rate(
    store: Store, config: Config, dataset: Dataset, *, phase: int, low: float, high: float, steps: int
) -> tuple[FoundRate, str]:
    """Test a phase (from 0), or find the same test that was made before; returns it and the name of its page.

    Raises TrainingError when the loss grows out of bounds at once, BackboneError when the base cannot be loaded.
    """
    from transfer.training.shared_models import process_models

    test = range_test_of(store, config, dataset, phase=phase, low=low, high=high, steps=steps)
    if not store.exists(layout.curve(test.folder)):
        curve = measure_curve(test, dataset, shared=process_models())
        tested = config.phases[phase]
        found = FoundRate(
            id=test.id,
            name=config.name,
            dataset=dataset.reference,
            base=config.base.model.rpartition("/")[2],
            phase=phase,
            unfreeze=tested.unfreeze,
            optimizer=tested.optimizer.name,
            batch_size=config.training.batch_size,
            curve=curve,
            suggestion=curve.steepest,
            tenth_of_minimum=curve.tenth_of_minimum,
        )
        # matplotlib costs a second that finding an earlier test need not pay.
        from transfer.tuning.lr_page import render

        _, page = put_content(store, partial(layout.range_test_page, test.folder), render(found).encode())
        try:
            put_document(store, layout.curve(test.folder), StoredRate(found=found, page=page).model_dump(mode="json"))
        except AlreadyExistsError:
            logger.info("The same test was made elsewhere meanwhile; its figures count.")
    else:
        logger.info("The same test was made before.")
    return read_rate(store, test.id)


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
    from transfer.training.loop import Training

    with memory_explained("The range test", advice=for_training(test.config)), shared.strategy.scope():
        phases = [phase.model_copy(update={"early_stopping": None}) for phase in test.config.phases]
        run = replace(test, config=test.config.model_copy(update={"phases": phases}))
        training = Training(run, dataset, shared=shared, keeps=False)
        while training.progress.phase < len(test.config.phases) - 1:
            training.next_epoch()
        # Each step at a learning rate that is higher by the same factor.
        rates = [float(rate) for rate in np.geomspace(test.low, test.high, test.steps)]
        losses: list[float] = []
        diverged = False
        program, done = training.program(), training.progress.global_step
        samples = training.samples(epochs=math.ceil(test.steps / training.steps), max_steps=1)
        with progress("range test", total=test.steps, unit="steps") as advance:
            while len(losses) < test.steps and not diverged:
                step = len(losses)
                program.set_learning_rate(rates[step])
                in_epoch = step % training.steps
                ((_, result),) = samples.train(program, range(in_epoch, in_epoch + 1), global_step=done + step)
                losses.append(program.sum_over_workers([result])[0].mean_loss)
                diverged = has_diverged(losses)
                advance(1)
        finite = len(losses) if math.isfinite(losses[-1]) else len(losses) - 1
        return RateCurve(rates=tuple(rates[:finite]), losses=tuple(losses[:finite]), diverged=diverged)
