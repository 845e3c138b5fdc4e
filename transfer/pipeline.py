"""The jobs, as plain functions of a configuration: ingest, train, sweep, nightly, evaluate, publish, predict.

Each can be repeated: what is already done is found and not done again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer import steps
from transfer.cluster import connect, connect_for, run_where
from transfer.config import Config
from transfer.dataset.ingest import ingest as ingest_dataset
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import ConfigError
from transfer.evaluation.report import Report
from transfer.fork_server import start_server
from transfer.preflight import check_source_and_files
from transfer.registry.publication import published_version
from transfer.registry.versions import ModelVersion, current_promotion, promote
from transfer.steps import evaluated, fit, published, read_report, writable_storage
from transfer.storage import Store, open_store
from transfer.training.history import row_kept
from transfer.training.run import Run, load_run, open_run
from transfer.tuning.lr_find import FoundRate, check_range, find_rate
from transfer.tuning.space import check_space, with_values

if TYPE_CHECKING:
    from transfer.nightly.summary import NightSummary
    from transfer.registry.predict import PredictOutcome
    from transfer.tuning.driver import SweepOutcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutcome:
    """What a training job left behind."""

    run: Run
    dataset: Dataset
    report: Report
    report_uri: str
    version: ModelVersion | None


def check(config: Config) -> None:
    """Check everything that can be known to be wrong before anything is spent.

    Storage can be written and honours put-if-absent, the source and the weights are there, the network can be built and
    cut where the phases ask for it, and the head that it is to begin with is there. Raises the TransferError that a job
    would end with.
    """
    writable_storage(config)
    check_source_and_files(config)
    run_where(config.workers, _check_base_and_depths, config)


def ingest(config: Config) -> Dataset:
    """Bring the configured images into storage as a dataset version; the same images again are the same version."""
    store = writable_storage(config)
    check_source_and_files(config)
    return ingest_dataset(config, store)


def train(config: Config, *, run_id: str | None = None) -> TrainOutcome:
    """The main job: ingest, train, evaluate, publish, promote.

    Repeating it continues an interrupted run from its last checkpoint, and finds a finished one.
    """
    if config.workers.count == 0:
        # For the processes that check images and prove the export. It imports TensorFlow while this one does.
        start_server()
    check(config)
    store = open_store(config.storage)
    dataset = ingest_dataset(config, store)
    run = open_run(store, config, dataset, run_id=run_id)
    logger.info("Run %s on dataset %s.", run.id, dataset.reference)
    return _finish(run, dataset)


def sweep(config: Config) -> tuple[SweepOutcome, TrainOutcome]:
    """Search the configuration's `sweep.space`, then evaluate, publish and promote the winner like a single run.

    Repeating it goes on with an interrupted sweep, and finds a finished one.
    """
    # Late: it loads Ray Tune, which no other job needs.
    from transfer.tuning.driver import run_sweep

    check_space(config)
    connect()
    store = writable_storage(config)
    check_source_and_files(config)
    dataset = ingest_dataset(config, store)
    outcome = run_sweep(config, dataset, store)
    winner = outcome.winner
    logger.info("Trial %d won: %s.", winner.number, winner.values)
    if winner.status == "stopped":
        logger.info(
            "It was stopped after epoch %d (%s). Its run is trained to its end before it is evaluated.",
            len(winner.rows),
            winner.reason,
        )
    run = open_run(store, with_values(config, winner.values), dataset, run_id=winner.run_id or None)
    won = _finish(run, dataset)
    if winner.status == "stopped":
        at_its_end = row_kept(won.report.history, run.config.phases)
        logger.info(
            "At the end of its run, validation accuracy is %.4f and loss %.4f; trial %d won with %s %.4f.",
            at_its_end.validation_accuracy,
            at_its_end.validation_loss,
            winner.number,
            outcome.result.metric,
            winner.value,
        )
    return outcome, won


def nightly(config: Config) -> tuple[NightSummary, str]:
    """Work on the night that is not over, or on the next one; returns what is known of it and where its page is.

    Ingests what is new, checks it, trains, and promotes what proves better than what serves.
    """
    # Late: it loads what draws pages.
    from transfer.nightly.night import run_night

    return run_night(config)


def evaluate(config: Config, *, run_id: str, split: str | None = None) -> tuple[Report, str]:
    """Evaluate a finished run again; returns the report and where it is."""
    run = load_run(writable_storage(config), run_id, config)
    return read_report(run, steps.evaluate(run, split=split))


def publish(config: Config, *, run_id: str, again: bool = False) -> ModelVersion:
    """Publish an evaluated run, and promote it unless the configuration says otherwise.

    It is published with its newest report on the held-out split, or on another one where it has no such report.
    `again`: as a new version, exported by the present code, where it is published already. That is promoted only where
    the version that it replaces serves.
    """
    run = load_run(writable_storage(config), run_id, config)
    if run.config.name != config.name:
        raise ConfigError(
            f"Run `{run_id}` is one of `{run.config.name}`, and `name` in the configuration is `{config.name}`.",
            advice="Publish it with the configuration that it was trained with: it becomes a version of that model.",
        )
    dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
    return _publish_and_promote(run, run.newest_report(dataset.held_out_split), again=again)


def predict(config: Config, *, images: str, output: str, version: int | None = None) -> PredictOutcome:
    """Answer a folder or prefix of images with the published model."""
    connect_for(config.workers)
    return run_where(config.workers, _predict, config, images, output, version)


def lr_find(
    config: Config, *, phase: int = 0, low: float = 1e-7, high: float = 10.0, steps: int = 200
) -> tuple[FoundRate, str]:
    """Suggest a learning rate for a phase (from 0); returns how it was found and where its page is.

    The same test again is found, not made again. No run and no model is changed.
    """
    check_range(config, phase=phase, low=low, high=high, steps=steps)
    check(config)
    store = open_store(config.storage)
    dataset = ingest_dataset(config, store)
    found, page = run_where(config.workers, _lr_find, config, dataset.number, phase, low, high, steps)
    return found, f"{store.uri}/{page}"


def _finish(run: Run, dataset: Dataset) -> TrainOutcome:
    """Train what is left of a run, evaluate it, publish it."""
    fit(run, dataset)
    number = evaluated(run, dataset)
    version = _publish_and_promote(run, number) if run.config.publish.enabled else None
    # Publishing may have evaluated it anew.
    report, uri = read_report(run, version.provenance["report"] if version else number)
    return TrainOutcome(run, dataset, report, uri, version)


def _publish_and_promote(run: Run, report: int | None, *, again: bool = False) -> ModelVersion:
    before = published_version(run.store, run.config.name, run.id) if again else None
    version = published(run, report=report, again=again)
    if run.config.publish.promote and (before is None or _serves(run.store, before)):
        promote(run.store, version, reason=f"published by run {run.id}")
    return version


def _serves(store: Store, version: ModelVersion) -> bool:
    promotion = current_promotion(store, version.model)
    return promotion is not None and promotion.version == version.number


# What runs in a process with TensorFlow. Numbers and ids go in and out, not objects that hold connections.


def _check_base_and_depths(config: Config) -> None:
    from transfer.backbone.graph import has_batch_norms
    from transfer.training.workbench import own_workbench

    # As for training, which finds the network here: its strategy comes before anything that uses a GPU.
    workbench = own_workbench()
    with workbench.strategy.scope():
        backbone = workbench.backbone(config)
    if config.base.weights == "none" and has_batch_norms(backbone.network):
        logger.warning(
            "base.weights is `none`, and %s has BatchNorms. They answer by stored statistics, which are those of no "
            "image and stay so: hardly anything can be learned on this base.",
            config.base.model,
        )
    for phase in config.phases:
        backbone.cut(phase.unfreeze)
    if config.training.warm_start is not None:
        from transfer.training.warm_start import published_head

        published_head(open_store(config.storage), config, config.training.warm_start)


def _predict(config: Config, images: str, output: str, version: int | None) -> PredictOutcome:
    from transfer.registry.predict import predict as predict_images

    return predict_images(config, images=images, output=output, version=version)


def _lr_find(
    config: Config, dataset_number: int, phase: int, low: float, high: float, steps: int
) -> tuple[FoundRate, str]:
    store = open_store(config.storage)
    dataset = load_dataset(store, config.dataset_name, dataset_number)
    return find_rate(store, config, dataset, phase=phase, low=low, high=high, steps=steps)
