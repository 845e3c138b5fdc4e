"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186): some steps at rising learning rates.

A test is made for one phase and recorded. The same test is not made twice.
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
    """Raise ConfigError if there is no such phase (from 0), if the range is not ascending, or if steps are too few."""
    if phase not in range(len(config.phases)):
        raise ConfigError(
            f"There is no phase {phase}: the configuration has {len(config.phases)}, counted from 0.",
            advice=f"Give one from 0 to {len(config.phases) - 1}.",
        )
    if not 0 < low < high:
        raise ConfigError(
            f"The learning rates of a test cannot be from {low:g} to {high:g}.",
            advice="Both must be above 0, and the second must be higher. The defaults are 1e-07 and 10.",
        )
    if steps < MIN_STEPS:
        raise ConfigError(
            f"A test of {steps} steps is too short: it needs at least {MIN_STEPS}.", advice="The default is 200."
        )


def find_rate(
    store: Store, config: Config, dataset: Dataset, *, phase: int, low: float, high: float, steps: int
) -> tuple[FoundRate, str]:
    """Test a phase (from 0), or find the same test if it was made before. Returns it and the name of its page.

    Raises TrainingError if the loss diverges at once, BackboneError if the base cannot be loaded.
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
            rank=tested.lora.rank if tested.lora else None,
            optimizer=tested.optimizer.name,
            batch_size=config.training.batch_size,
            curve=curve,
            suggestion=curve.steepest,
            tenth_of_minimum=curve.tenth_of_minimum,
        )
        # A late import, because it loads matplotlib, which is not needed to find an earlier test.
        from transfer.tuning.lr_page import render

        _, page = put_content(store, partial(layout.range_test_page, test.folder), render(found).encode())
        try:
            put_document(store, layout.curve(test.folder), StoredRate(found=found, page=page).model_dump(mode="json"))
        except AlreadyExistsError:
            logger.info("Another process made the same test at the same time; its figures are used.")
    else:
        logger.info("The same test was made before; its figures are used.")
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

    Its id depends on everything that decides its curve.
    """
    # The phase's own learning rate and schedule are not used, so the test is found again after they are changed.
    changes = {"learning_rate": low, "schedule": ScheduleConfig(), "early_stopping": None}
    tested = config.phases[phase].model_copy(update=changes)
    config = config.model_copy(update={"phases": [*config.phases[:phase], tested]})
    name = f"{run_id_for(config, dataset)}-{low}-{high}-{steps}"
    return RangeTest(store, name, config, dataset.name, dataset.number, low, high, steps)


def measure_curve(test: RangeTest, dataset: Dataset, *, shared: SharedModels) -> RateCurve:
    """Take the test's steps, and stop when the loss diverges. The trained weights are not stored.

    The test begins at the end of the phases before the tested one. So they are trained first, without early stopping.
    Raises BackboneError if the base cannot be loaded, OutOfMemoryError, and what `warm_start` raises.
    """
    from transfer.training.loop import Training

    with memory_explained("The range test", advice=for_training(test.config)), shared.strategy.scope():
        phases = [phase.model_copy(update={"early_stopping": None}) for phase in test.config.phases]
        run = replace(test, config=test.config.model_copy(update={"phases": phases}))
        training = Training(run, dataset, shared=shared, keeps=False)
        while training.progress.phase < len(test.config.phases) - 1:
            training.next_epoch()
        # From step to step the learning rate rises by the same factor.
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
