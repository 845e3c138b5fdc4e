"""Find a learning rate for a phase, and keep how it was found.

lr_find/<id>/curve.json        what was tested, and the loss at each learning rate; written last
lr_find/<id>/<sha256>.html     the same as a page
"""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict

from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import AlreadyExistsError, ConfigError
from transfer.storage import Store, put_content, put_document, read_document
from transfer.training.rate_curve import MIN_STEPS, RateCurve

logger = logging.getLogger(__name__)


class FoundRate(BaseModel):
    """The learning rate that a range test suggests for a phase of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str
    name: str
    dataset: str
    base: str
    phase: int
    """From 0."""
    unfreeze: int | str
    optimizer: str
    batch_size: int
    curve: RateCurve
    suggestion: float
    """Where the smoothed loss falls fastest."""
    tenth_of_minimum: float
    """A tenth of where it is lowest."""

    @property
    def setting(self) -> str:
        """What to give to `--set` to use it."""
        return f"phases.{self.phase}.learning_rate={self.suggestion:.1e}"


def check_range(config: Config, *, phase: int, low: float, high: float, steps: int) -> None:
    """Raise ConfigError for a test that cannot be made: no such phase (from 0), no range, too few steps."""
    if phase not in range(len(config.phases)):
        raise ConfigError(
            f"Phase {phase + 1} is asked for, and the configuration has {len(config.phases)}.",
            advice="Phases count from 1.",
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
    from transfer.training.lr_range import measure_curve, range_test_of
    from transfer.training.workbench import own_workbench

    test = range_test_of(store, config, dataset, phase=phase, low=low, high=high, steps=steps)
    if not store.exists(f"{test.prefix}/curve.json"):
        curve = measure_curve(test, dataset, workbench=own_workbench())
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
        _keep(store, test.prefix, found)
    else:
        logger.info("The same test was made before.")
    document = read_document(store, f"{test.prefix}/curve.json")
    return FoundRate.model_validate(document["found"]), f"{test.prefix}/{document['page']}.html"


def _keep(store: Store, folder: str, found: FoundRate) -> None:
    # matplotlib costs a second that finding an earlier test need not pay.
    from transfer.tuning.rate_page import render

    _, page = put_content(store, folder, ".html", render(found).encode())
    try:
        put_document(store, f"{folder}/curve.json", {"found": found.model_dump(mode="json"), "page": page})
    except AlreadyExistsError:
        logger.info("The same test was made elsewhere meanwhile; its figures count.")
