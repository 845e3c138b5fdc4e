"""The jobs, as plain functions of a configuration: ingest, train, sweep, evaluate, publish, predict.

Each can be repeated: what is already done is found and not done again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transfer.cluster import connect, run_where
from transfer.config import Config
from transfer.dataset.ingest import ingest as ingest_dataset
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.evaluation.report import Report
from transfer.preflight import check_source_and_files
from transfer.registry.predict import PredictOutcome
from transfer.registry.predict import predict as predict_images
from transfer.registry.versions import ModelVersion, load_version, promote
from transfer.storage import Store, open_store, probe
from transfer.training.run import Run, load_run, open_run
from transfer.tuning.lr_find import FoundRate, check_range, find_rate
from transfer.tuning.space import check_space, with_values

if TYPE_CHECKING:
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
    cut where the phases ask for it. Raises the TransferError that a job would end with.
    """
    _storage(config)
    check_source_and_files(config)
    run_where(config.workers, _check_network, config)


def ingest(config: Config) -> Dataset:
    """Bring the configured images into storage as a dataset version; the same images again are the same version."""
    store = _storage(config)
    check_source_and_files(config)
    return ingest_dataset(config, store)


def train(config: Config, *, run_id: str | None = None) -> TrainOutcome:
    """The main job: ingest, train, evaluate, publish, promote.

    Repeating it continues an interrupted run from its last checkpoint, and finds a finished one.
    """
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
    store = _storage(config)
    check_source_and_files(config)
    dataset = ingest_dataset(config, store)
    outcome = run_sweep(config, dataset, store)
    winner = outcome.winner
    logger.info("Trial %d won: %s.", winner.number, winner.values)
    run = open_run(store, with_values(config, winner.values), dataset, run_id=winner.run_id or None)
    return outcome, _finish(run, dataset)


def evaluate(config: Config, *, run_id: str, split: str | None = None) -> tuple[Report, str]:
    """Evaluate a finished run again; returns the report and where it is."""
    run = load_run(_storage(config), run_id, config)
    return _report(run, run_where(config.workers, _evaluate, config, run.id, split))


def publish(config: Config, *, run_id: str) -> ModelVersion:
    """Publish an evaluated run, and promote it unless the configuration says otherwise."""
    return _publish_and_promote(config, load_run(_storage(config), run_id, config), None)


def predict(config: Config, *, images: str, output: str, version: int | None = None) -> PredictOutcome:
    """Answer a folder or prefix of images with the published model."""
    if config.workers.count:
        connect()
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


def _storage(config: Config) -> Store:
    """The job's storage, found fit to be written to; connects to the cluster first if the job runs on one."""
    if config.workers.count:
        connect()
    store = open_store(config.storage)
    probe(store, single_writer=config.storage.single_writer)
    return store


def _finish(run: Run, dataset: Dataset) -> TrainOutcome:
    """Train what is left of a run, evaluate it, publish it."""
    config = run.config
    _fit(run, dataset)
    number = run.newest_report() or run_where(config.workers, _evaluate, config, run.id, None)
    report, uri = _report(run, number)
    version = _publish_and_promote(config, run, number) if config.publish.enabled else None
    return TrainOutcome(run, dataset, report, uri, version)


def _fit(run: Run, dataset: Dataset) -> None:
    newest = run.checkpoints.latest()
    if newest is not None and newest[1]["progress"]["complete"]:
        logger.info("Run %s is finished already.", run.id)
        return
    if run.config.workers.count:
        from transfer.training.ray_workers import train_on_workers

        train_on_workers(run)
        return
    from transfer.training.strategy import create_strategy

    strategy = create_strategy()

    from transfer.training.checkpoints import Checkpoints
    from transfer.training.loop import train as train_here

    train_here(run, dataset, strategy=strategy, start=Checkpoints(run).newest())


def _publish_and_promote(config: Config, run: Run, report_number: int | None) -> ModelVersion:
    number = run_where(config.workers, _publish, config, run.id, report_number)
    version = load_version(run.store, run.config.name, number)
    if config.publish.promote:
        promote(run.store, version, reason=f"published by run {run.id}")
    return version


def _report(run: Run, number: int) -> tuple[Report, str]:
    folder = f"{run.prefix}/reports/{number:08d}"
    digest = run.reports.read(number)["files"]["report.json"]
    report = Report.from_json(run.store.read_verified(f"{folder}/report.json", digest))
    return report, f"{run.store.uri}/{folder}/report.html"


# What runs in a process with TensorFlow. Numbers and ids go in and out, not objects that hold connections.


def _check_network(config: Config) -> None:
    from transfer.training.strategy import create_strategy

    # First, as for training: it sets the process's GPUs up, which cannot be done once one is in use.
    create_strategy()

    from transfer.backbone.load import load_backbone

    backbone = load_backbone(config.base, storage=config.storage)
    for phase in config.phases:
        backbone.cut(phase.unfreeze)


def _evaluate(config: Config, run_id: str, split: str | None) -> int:
    from transfer.evaluation.evaluate import evaluate_run

    run, dataset = _open(config, run_id)
    return evaluate_run(run, dataset, split=split)


def _publish(config: Config, run_id: str, report_number: int | None) -> int:
    from transfer.registry.publish import publish_run

    run, dataset = _open(config, run_id)
    return publish_run(run, dataset, report_number=report_number).number


def _predict(config: Config, images: str, output: str, version: int | None) -> PredictOutcome:
    return predict_images(config, images=images, output=output, version=version)


def _lr_find(
    config: Config, dataset_number: int, phase: int, low: float, high: float, steps: int
) -> tuple[FoundRate, str]:
    store = open_store(config.storage)
    dataset = load_dataset(store, config.dataset_name, dataset_number)
    return find_rate(store, config, dataset, phase=phase, low=low, high=high, steps=steps)


def _open(config: Config, run_id: str) -> tuple[Run, Dataset]:
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    return run, load_dataset(store, run.dataset_name, run.dataset_number)
