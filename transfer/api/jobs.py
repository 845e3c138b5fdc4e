"""The jobs as functions that are easy to call; what they do is in `transfer.jobs`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from transfer import jobs
from transfer.api.configure import EachPhase, Source, Storage, configured, storage_config
from transfer.api.results import LearningRates, Model, Sweep, TrainedRun
from transfer.config import Config
from transfer.dataset.manifest import load_dataset
from transfer.ensure import read_report
from transfer.errors import TrainingError
from transfer.jobs import TrainOutcome
from transfer.registry.versions import load_version, published_version
from transfer.runtime.progress import hidden
from transfer.runtime.startup import import_tensorflow, quiet_stderr
from transfer.storage import as_model, open_store
from transfer.training.run import load_run as find_run
from transfer.training.run import usable_start

if TYPE_CHECKING:
    import pandas as pd

    from transfer.nights.summary import NightSummary


def train(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    unfreeze: EachPhase | None = None,
    epochs: EachPhase | None = None,
    learning_rate: EachPhase | None = None,
    storage: Storage | None = None,
    run_id: str | None = None,
    verbose: bool = True,
) -> TrainedRun:
    """Train, evaluate and publish a classifier. The same call again finds the finished run.

    Args:
        source: A configuration (`Config`, a mapping, the path of a YAML file), or where the images are: a folder of
            class folders, an `s3://` prefix of them, an archive, a table, `tfds:NAME`. Images get the configuration
            that `transfer init` writes for them.
        changes: Values by dotted key, `{"training.batch_size": 16}`, as `--set` on the command line.
        model: The pretrained network, `base.model`.
        image_size: Size in pixels of the images that the network takes: the side of a square, or height and width.
        unfreeze: Depth of each phase: 0 trains the head, n the last n blocks too.
        epochs: Passes over the training images, for all phases or one for each.
        learning_rate: Peak learning rate, for all phases or one for each. Of phases that `unfreeze` makes: 1e-3 for the
            head, 1e-5 for blocks.
        storage: Where datasets, runs and models are kept. Default: that of the configuration; `./storage` for images.
        run_id: A name for the run. Default: one that is decided by what is trained.
        verbose: Show what happens on standard error, unless the program has set up logging itself.

    Returns:
        The finished run: `metrics`, `history`, `predict`, `keras_model`; a notebook shows its report.

    Raises:
        TransferError: One of its kinds, with what was found, what was expected, and what to do.

    Example:
        >>> run = transfer.train("flower_photos", model="MobileNetV2", unfreeze=[0, 2], epochs=[5, 5])
        >>> run.metrics.accuracy, run.predict("rose.jpg")[0].label
    """
    config = configured(
        source,
        changes,
        model=model,
        image_size=image_size,
        unfreeze=unfreeze,
        epochs=epochs,
        learning_rate=learning_rate,
        storage=storage,
    )
    with _shown(verbose):
        return _trained(jobs.train(config, run_id=run_id))


def sweep(
    source: Source,
    space: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    trials: int | None = None,
    search: str | None = None,
    scheduler: str | None = None,
    storage: Storage | None = None,
    verbose: bool = True,
) -> Sweep:
    """Search values of a configuration with Ray Tune; then train, evaluate and publish the best like a single run.

    The same call again goes on with an interrupted sweep, and finds a finished one.

    Args:
        source: As for `train`.
        space: What is searched: for each dotted key a list of choices, `log_uniform(…)`, `uniform(…)` or
            `integers(…)`. Default: what the section `sweep` of the configuration says.
        changes: Values by dotted key, as `--set` on the command line.
        trials: How many combinations are tried, `sweep.trials`.
        search: `grid`, `random` or `optuna`.
        scheduler: `none`, `asha`, `median` or `pbt`: who stops trials early.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        The sweep: `trials` is a table, `best` the finished run of the winner.

    Raises:
        TransferError: As `train`; ConfigError where there is nothing to search.

    Example:
        >>> rates = {"phases.0.learning_rate": transfer.log_uniform(1e-5, 1e-1)}
        >>> best = transfer.sweep("flowers.yaml", rates, trials=16).best
    """
    given = {"space": space and dict(space), "trials": trials, "search": search, "scheduler": scheduler}
    section = {f"sweep.{key}": value for key, value in given.items() if value is not None}
    config = configured(source, {**section, **(changes or {})}, storage=storage)
    with _shown(verbose):
        outcome, won = jobs.sweep(config)
    return Sweep(outcome.result, _trained(won), outcome.page_uri)


def nightly(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    storage: Storage | None = None,
    verbose: bool = True,
) -> NightSummary:
    """Do tonight's work: ingest what is new, check it, train, and promote what proves better than what serves.

    Args:
        source: As for `train`.
        changes: Values by dotted key, as `--set` on the command line.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        What is known of the night: its outcome, the checks of its data, the comparison, the gate's rules.

    Raises:
        TransferError: As `train`.

    Example:
        >>> transfer.nightly("flowers.yaml").outcome
    """
    with _shown(verbose):
        summary, _page = jobs.nightly(configured(source, changes, storage=storage))
    return summary


def find_learning_rate(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    phase: int = 0,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 200,
    storage: Storage | None = None,
    verbose: bool = True,
) -> LearningRates:
    """Suggest a learning rate for a phase by a range test (Smith, 2017). No run and no model is changed.

    Args:
        source: As for `train`.
        changes: Values by dotted key, as `--set` on the command line.
        phase: Which phase, counted from 0.
        low: Learning rate of the first step.
        high: Learning rate of the last step.
        steps: Steps, one batch each.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        `suggestion`, and the `curve` of losses.

    Raises:
        TransferError: As `train`.

    Example:
        >>> rate = transfer.find_learning_rate("flowers.yaml").suggestion
    """
    config = configured(source, changes, storage=storage)
    with _shown(verbose):
        found, page = jobs.lr_find(config, phase=phase, low=low, high=high, steps=steps)
    return LearningRates(found, page)


def inspect(network: str, *, image_size: int | tuple[int, int] = 224) -> pd.DataFrame:
    """List the blocks of a pretrained network: what each `unfreeze` depth would train, and what it costs.

    Args:
        network: A network of `keras.applications`, a `.keras` file or a SavedModel, as `base.model`.
        image_size: Size in pixels of the images: the side of a square, or height and width.

    Returns:
        A row a block, from the input to the output, by `depth`: block, layers, parameters, flops, output_shape, …

    Raises:
        BackboneError: There is no such network, or it cannot serve as a base.

    Example:
        >>> transfer.inspect("MobileNetV2", image_size=96)[["block", "parameters"]]
    """
    import pandas as pd

    from transfer.config import BaseNetworkConfig

    import_tensorflow()

    from transfer.backbone.load import describe, load_backbone

    # Its structure does not depend on the weights, and random ones need no download.
    base = BaseNetworkConfig(model=network, weights="none", image_size=image_size, accept_head=True)
    return pd.DataFrame(describe(load_backbone(base))).set_index("depth")


def load_model(name: str, storage: Storage = "./storage", *, version: int | None = None) -> Model:
    """Load a published model.

    Args:
        name: Name of the model.
        storage: Where it is kept.
        version: Number of the version. Default: the one that serves.

    Returns:
        The model, to be asked with `predict`.

    Raises:
        RegistryError: There is no such model or version, or none serves.
        StorageError: Storage cannot be read, or a file of it is damaged.

    Example:
        >>> transfer.load_model("flowers").predict(["rose.jpg", "tulip.jpg"])
    """
    section = storage_config(storage)
    store = open_store(section)
    return Model(store, load_version(store, name, version), section)


def load_run(run_id: str, storage: Storage = "./storage") -> TrainedRun:
    """Load a finished run that was evaluated, published or not.

    Args:
        run_id: Its name, as `train` and `transfer runs list` show it.
        storage: Where it is kept.

    Returns:
        The run, as `train` returned it.

    Raises:
        TrainingError: There is no such run, or it was not evaluated.
        StorageError: Storage cannot be read.

    Example:
        >>> transfer.load_run("flowers-0b1c2d3e4f5a").history
    """
    section = storage_config(storage)
    store = open_store(section)
    started = usable_start(store, run_id)
    config = as_model(Config, {**started.config, "storage": section.model_dump()}, uri=store.uri)
    run = find_run(store, run_id, config)
    dataset = load_dataset(store, run.dataset_name, run.dataset_number)
    number = run.newest_report(dataset.held_out_split) or run.newest_report()
    if number is None:
        raise TrainingError(
            f"Run `{run_id}` was not evaluated, or is not finished.", advice="`train` with its configuration goes on."
        )
    report, uri = read_report(run, number)
    return TrainedRun(run, dataset, report, uri, published_version(store, run.config.name, run.id), None)


def uniform(low: float, high: float) -> dict[str, list[float]]:
    """Numbers between two ends, all equally likely, for the space of a sweep.

    Example:
        >>> transfer.uniform(0.0, 0.5)
        {'uniform': [0.0, 0.5]}
    """
    return {"uniform": [low, high]}


def log_uniform(low: float, high: float) -> dict[str, list[float]]:
    """Numbers between two ends above 0, each order of magnitude equally likely, for the space of a sweep.

    Example:
        >>> transfer.log_uniform(1e-5, 1e-1)
        {'log_uniform': [1e-05, 0.1]}
    """
    return {"log_uniform": [low, high]}


def integers(low: int, high: int) -> dict[str, list[int]]:
    """Whole numbers between two ends, both included, for the space of a sweep.

    Example:
        >>> transfer.integers(0, 4)
        {'integers': [0, 4]}
    """
    return {"integers": [low, high]}


def _trained(outcome: TrainOutcome) -> TrainedRun:
    choice = outcome.choice
    version, why = (choice.version, choice.why) if choice else (None, None)
    return TrainedRun(outcome.run, outcome.dataset, outcome.report, outcome.report_uri, version, why)


@contextmanager
def _shown(verbose: bool) -> Iterator[None]:
    """Show what this project logs while the block runs, unless somebody listens already, and no talk of libraries."""
    logger = logging.getLogger("transfer")
    with quiet_stderr(), nullcontext() if verbose else hidden():
        if not verbose or logger.hasHandlers():
            yield
            return
        handler, level = logging.StreamHandler(sys.stderr), logger.level
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        # TensorFlow's logging library gives the root logger a handler while it works.
        propagated, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = propagated
            logger.setLevel(level)
            logger.removeHandler(handler)
