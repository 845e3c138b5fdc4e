"""Find a learning rate for a phase: make the range test or find it made before, and record it."""

from __future__ import annotations

import logging
from functools import partial

from transfer.catalog import layout
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import AlreadyExistsError, ConfigError
from transfer.storage import Store, put_content, put_document
from transfer.tuning.lr_curve import MIN_STEPS, FoundRate, StoredRate, read_rate

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
    from transfer.tuning.lr_range import measure_curve, range_test_of

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
        _keep(store, test.folder, found)
    else:
        logger.info("The same test was made before.")
    return read_rate(store, test.id)


def _keep(store: Store, folder: str, found: FoundRate) -> None:
    # matplotlib costs a second that finding an earlier test need not pay.
    from transfer.tuning.lr_page import render

    _, page = put_content(store, partial(layout.range_test_page, folder), render(found).encode())
    try:
        put_document(store, layout.curve(folder), StoredRate(found=found, page=page).model_dump(mode="json"))
    except AlreadyExistsError:
        logger.info("The same test was made elsewhere meanwhile; its figures count.")
