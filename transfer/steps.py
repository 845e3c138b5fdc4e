"""What jobs are made of: each step is found if it was done before, and done where TensorFlow may be loaded."""

from __future__ import annotations

import logging

from transfer.cluster import connect_for, run_where
from transfer.config import Config
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.evaluation.report import Report
from transfer.registry.versions import ModelVersion, load_version
from transfer.startup import import_tensorflow
from transfer.storage import Store, open_store, probe
from transfer.training.run import Run, load_run

logger = logging.getLogger(__name__)


def writable_storage(config: Config) -> Store:
    """The job's storage, found fit to be written to; connects to the cluster first if the job runs on one."""
    connect_for(config.workers)
    store = open_store(config.storage)
    probe(store, single_writer=config.storage.single_writer)
    return store


def fit(run: Run, dataset: Dataset) -> None:
    """Train what is left of a run."""
    from transfer.training.checkpoints import Checkpoints

    newest = Checkpoints(run).newest()
    if newest is not None and newest.progress.complete:
        logger.info("Run %s is finished already.", run.id)
        return
    if run.config.workers.count:
        from transfer.training.ray_workers import train_on_workers

        train_on_workers(run)
        return
    import_tensorflow()

    from transfer.training.loop import train as train_here
    from transfer.training.workbench import own_workbench

    train_here(run, dataset, workbench=own_workbench(), start=newest)


def evaluated(run: Run, dataset: Dataset) -> int:
    """Number of the run's newest report on the held-out split; evaluates it first where there is none.

    Somebody may have looked at other splits since, and no model is judged by those.
    """
    return run.newest_report(dataset.held_out_split) or evaluate(run, split=dataset.held_out_split)


def evaluate(run: Run, *, split: str | None) -> int:
    """Evaluate a finished run once more; returns the new report's number."""
    return run_where(run.config.workers, _evaluate, run.config, run.id, split)


def read_report(run: Run, number: int) -> tuple[Report, str]:
    """A report of a run, and where its page is."""
    folder = f"{run.prefix}/reports/{number:08d}"
    digest = run.reports.read(number)["files"]["report.json"]
    report = Report.from_json(run.store.read_verified(f"{folder}/report.json", digest))
    return report, f"{run.store.uri}/{folder}/report.html"


def published(run: Run, *, report: int | None = None, again: bool = False) -> ModelVersion:
    """The version of an evaluated run; publishes it first where there is none, or `again`.

    `report`: default is the newest.
    """
    number = run_where(run.config.workers, _publish, run.config, run.id, report, again)
    return load_version(run.store, run.config.name, number)


def reopened(config: Config, run_id: str) -> tuple[Run, Dataset]:
    """A run and its dataset version, in another process than the driver's."""
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    return run, load_dataset(store, run.dataset_name, run.dataset_number)


# What runs in a process with TensorFlow. Numbers and ids go in and out, not objects that hold connections.


def _evaluate(config: Config, run_id: str, split: str | None) -> int:
    from transfer.evaluation.evaluate import evaluate_run

    run, dataset = reopened(config, run_id)
    return evaluate_run(run, dataset, split=split)


def _publish(config: Config, run_id: str, report_number: int | None, again: bool) -> int:
    from transfer.registry.publish import publish_run

    run, dataset = reopened(config, run_id)
    return publish_run(run, dataset, report_number=report_number, again=again).number
