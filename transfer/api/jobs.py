"""The jobs as functions that are easy to call; `transfer.jobs` does their work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from transfer import jobs
from transfer.api.configure import EachPhase, Source, Storage, configured, storage_config
from transfer.api.results import LearningRates, Model, Screen, Sweep, TrainedRun
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
        source: The configuration (`Config`, mapping, or path of a YAML file), or the location of the images: a folder
            or an `s3://` prefix of class folders, an archive, a table, or `tfds:NAME`. For images the configuration is
            the one that `transfer init` writes.
        changes: Mapping from dotted keys to values, `{"training.batch_size": 16}`, as `--set` on the command line.
        model: String. The pretrained network, `base.model`.
        image_size: Integer, or pair of integers. Size of the images that the network takes, in pixels: the side of a
            square, or height and width.
        unfreeze: Integer, `all`, name of a layer, or a list of them. Depth of each phase: 0 trains the head, n also the
            last n blocks.
        epochs: Integer or list of integers. Passes over the training images, for all phases or one for each.
        learning_rate: Float or list of floats. Peak learning rate, for all phases or one for each. Default for phases
            that `unfreeze` makes: 1e-3 for the head, 1e-5 for blocks.
        storage: Folder, `s3://bucket/prefix`, mapping or `StorageConfig`. Datasets, runs and models are stored here.
            Default: the storage of the configuration; `./storage` for images.
        run_id: String. Id of the run. Default: an id that follows from the configuration and the images.
        verbose: Boolean. Whether progress is shown on standard error. A program that has set up logging receives the
            messages there instead.

    Returns:
        The finished run, with `metrics`, `history`, `predict` and `keras_model`. A notebook shows its report.

    Raises:
        ConfigError: The configuration is not valid.
        DatasetError: Images are missing, or cannot be used.
        TrainingError: Training could not start or go on.
        TransferError: Any other kind: storage, base network, memory, cluster, registry.

    Example:
        >>> run = transfer.train("flower_photos", model="MobileNetV2", unfreeze=[0, 2], epochs=[5, 5])
        >>> accuracy = run.metrics.accuracy
        >>> label = run.predict("photo.jpg")[0].label
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
    """Search values of a configuration with Ray Tune; then train, evaluate and publish the best.

    The same call again continues an interrupted sweep, and finds a finished one. Methods: random search (Bergstra and
    Bengio, 2012), Optuna's TPE (Bergstra et al., 2011), ASHA (Li et al., 2020), the median rule (Golovin et al., 2017),
    population based training (Jaderberg et al., 2017).

    Args:
        source: As for `train`.
        space: Mapping from each searched key, dotted, to a list of choices, `log_uniform(…)`, `uniform(…)` or
            `integers(…)`. Default: `sweep.space` of the configuration.
        changes: Mapping from dotted keys to values, as `--set` on the command line.
        trials: Integer. Number of combinations that are tried, `sweep.trials`. Not for `grid`, which tries all.
        search: `grid`, `random` or `optuna`. Default: `sweep.search`, which is `random`.
        scheduler: `none`, `asha`, `median` or `pbt`. The rule that stops trials early. Default: `sweep.scheduler`,
            which is `none`.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        The sweep: `trials` is a table, `best` the finished run of the winner.

    Raises:
        ConfigError: There is nothing to search, or the configuration is not valid.
        TransferError: Any other kind, as `train` raises.

    Example:
        >>> rates = {"phases.0.learning_rate": transfer.log_uniform(1e-4, 1e-2)}
        >>> found = transfer.sweep("flowers.yaml", rates, trials=2)
        >>> accuracy = found.best.metrics.accuracy
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
    """Run one night: ingest new images, check them, train, and promote the new model if it passes the gate.

    The gate compares the new model with the one that serves on held-out images, by McNemar's exact test (1947) or by a
    paired bootstrap interval (Efron and Tibshirani, 1993).

    Args:
        source: As for `train`.
        changes: Mapping from dotted keys to values, as `--set` on the command line.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        The summary of the night. `outcome` is `promoted`, `kept`, `nothing new` or `refused`; `findings` are the checks
        of the data, `comparison` compares the two models, `decision` has the rules of the gate.

    Raises:
        NightBusyError: Another process works on this night.
        TransferError: Any other kind, as `train` raises.

    Example:
        >>> night = transfer.nightly("flowers.yaml")
        >>> night.outcome in {"promoted", "kept", "nothing new", "refused"}
        True
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
    """Suggest a learning rate for a phase by a range test. No run and no model is changed.

    The learning rate grows geometrically from step to step (Smith, Cyclical Learning Rates, 2017). The suggestion is
    the rate at which the smoothed loss falls fastest, as in fastai.

    Args:
        source: As for `train`.
        changes: Mapping from dotted keys to values, as `--set` on the command line.
        phase: Integer. Index of the phase, from 0.
        low: Float. Learning rate of the first step.
        high: Float. Learning rate of the last step.
        steps: Integer. Number of steps; each trains on one batch.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        The result: `suggestion` is a learning rate, `curve` a table of the losses.

    Raises:
        ConfigError: There is no such phase, or the range or the number of steps makes no test.
        TrainingError: The loss diverged in the first steps.
        TransferError: Any other kind, as `train` raises.

    Example:
        >>> found = transfer.find_learning_rate("flowers.yaml", low=1e-5, high=1.0, steps=40)
        >>> 1e-5 <= found.suggestion <= 1.0
        True
    """
    config = configured(source, changes, storage=storage)
    with _shown(verbose):
        found, page = jobs.lr_find(config, phase=phase, low=low, high=high, steps=steps)
    return LearningRates(found, page)


def screen(
    source: Source,
    changes: Mapping[str, Any] | None = None,
    *,
    bases: Sequence[str],
    storage: Storage | None = None,
    verbose: bool = True,
) -> Screen:
    """Compare pretrained networks by their features of the training images. Nothing is trained.

    Each image is predicted by all others: by a linear probe, ridge regression with leave-one-out in closed form, and by
    nearest neighbours. LogME is the evidence of a Bayesian linear model (You et al., 2021).

    Args:
        source: As for `train`.
        changes: Mapping from dotted keys to values, as `--set` on the command line.
        bases: Sequence of strings. Networks, each as `base.model` names it, or as `name@size` with its own image size.
        storage: As for `train`.
        verbose: As for `train`.

    Returns:
        The result: `table` has the networks, the best first, and `settings` the changes that train with the best.

    Raises:
        ConfigError: There is no network, one is named twice, or a size is no number.
        TransferError: Any other kind, as `train` raises. A network that cannot be had raises nothing.

    Example:
        >>> found = transfer.screen("flowers.yaml", bases=[transfer.load_config("flowers.yaml").base.model, "Missing"])
        >>> list(found.left_out)
        ['Missing']
    """
    config = configured(source, changes, storage=storage)
    with _shown(verbose):
        result, page = jobs.screen(config, bases=bases)
    return Screen(result, page)


def inspect(network: str, *, image_size: int | tuple[int, int] = 224) -> pd.DataFrame:
    """List the blocks of a pretrained network: what each `unfreeze` depth trains, and its cost.

    Args:
        network: String. Name of a network of `keras.applications`, a preset of keras-hub (`hub:…` or its folder), a
            `.keras` file or a SavedModel, as `base.model`.
        image_size: Integer, or pair of integers. Size of the images that the network takes, in pixels: the side of a
            square, or height and width.

    Returns:
        DataFrame with one row for each block, from the input to the output. Its index is `depth`, the value of
        `unfreeze` that trains this block and all blocks after it. Columns: block and layers (names), parameters, flops
        (multiply-adds for one image), flops_share and trained_flops_share (0 to 1), output_shape (for one image),
        feature_bytes (the block's output for one image, as float32), cached_bytes (the cached features of one image at
        this depth), lora_attention and lora_dense (parameters that adapters of the block have for each rank).

    Raises:
        BackboneError: There is no such network, or it cannot serve as a base.

    Example:
        >>> blocks = transfer.inspect("MobileNetV2", image_size=96)
        >>> list(blocks.index[-2:])
        [2, 1]
        >>> blocks.loc[1, "output_shape"]
        [3, 3, 1280]
    """
    import pandas as pd

    from transfer.config import BaseNetworkConfig

    import_tensorflow()

    from transfer.backbone.load import describe, load_backbone

    # The blocks do not depend on the weights, and random weights need no download.
    base = BaseNetworkConfig(model=network, weights="none", image_size=image_size, accept_head=True)
    return pd.DataFrame(describe(load_backbone(base))).set_index("depth")


def load_model(name: str, storage: Storage = "./storage", *, version: int | None = None) -> Model:
    """Load a published model.

    Args:
        name: String. Name of the model.
        storage: Folder, `s3://bucket/prefix`, mapping or `StorageConfig`. The storage that it was published to.
        version: Integer. Number of the version. Default: the version that serves.

    Returns:
        The model; its method `predict` takes images.

    Raises:
        RegistryError: There is no such model or version, or no version serves.
        StorageError: Storage cannot be read, or a file of the model is damaged.

    Example:
        >>> model = transfer.load_model("flowers", "./storage")
        >>> labels = [prediction.label for prediction in model.predict("photo.jpg")]
    """
    section = storage_config(storage)
    store = open_store(section)
    return Model(store, load_version(store, name, version), section)


def load_run(run_id: str, storage: Storage = "./storage") -> TrainedRun:
    """Load a finished run that was evaluated, published or not.

    Args:
        run_id: String. Id of the run, as `TrainedRun.id` and `transfer runs list` show it.
        storage: Folder, `s3://bucket/prefix`, mapping or `StorageConfig`. The storage that it was trained in.

    Returns:
        The run as `train` returned it; only `what_serves` is None.

    Raises:
        TrainingError: There is no such run, or it was not evaluated.
        StorageError: Storage cannot be read.

    Example:
        >>> run_id = transfer.train("flowers.yaml").id
        >>> transfer.load_run(run_id, "./storage").id == run_id
        True
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
    """Make a domain for the space of a sweep: numbers between two ends, all equally likely.

    Args:
        low: Float. Lower end.
        high: Float. Upper end, above `low`.

    Returns:
        The domain as the configuration writes it.

    Example:
        >>> transfer.uniform(0.0, 0.5)
        {'uniform': [0.0, 0.5]}
    """
    return {"uniform": [low, high]}


def log_uniform(low: float, high: float) -> dict[str, list[float]]:
    """Make a domain for the space of a sweep: positive numbers, each order of magnitude equally likely.

    Args:
        low: Float above 0. Lower end.
        high: Float. Upper end, above `low`.

    Returns:
        The domain as the configuration writes it.

    Example:
        >>> transfer.log_uniform(1e-5, 1e-1)
        {'log_uniform': [1e-05, 0.1]}
    """
    return {"log_uniform": [low, high]}


def integers(low: int, high: int) -> dict[str, list[int]]:
    """Make a domain for the space of a sweep: whole numbers between two ends, both included.

    Args:
        low: Integer. Lowest value.
        high: Integer. Highest value, above `low`.

    Returns:
        The domain as the configuration writes it.

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
    """Log this project's messages to standard error inside the block, unless logging is set up; libraries are quiet."""
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
