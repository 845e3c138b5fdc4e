"""The steps of jobs. Each finds its result if it was done before, else it runs where TensorFlow may be imported."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.catalog.run import ReportEntry
from transfer.config import Config
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import DifferentAnswersError, RegistryError, StorageError
from transfer.evaluation.report import Report
from transfer.features.copy import copy_features
from transfer.registry.versions import load_version, published_version
from transfer.runtime.cluster import connect_for, run_where
from transfer.runtime.startup import import_tensorflow
from transfer.storage import Store, open_store, probe
from transfer.training.checkpoints import keep_best_and_last
from transfer.training.epoch_table import EpochTable
from transfer.training.run import Run, load_run

if TYPE_CHECKING:
    from transfer.registry.comparison import Comparison
    from transfer.reports.thumbnails import Thumbnail
    from transfer.training.checkpoints import Checkpoint

logger = logging.getLogger(__name__)


class Clock:
    """Measures the time of a job's steps: `seconds` by name of the step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the block as this step."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started


def writable_storage(config: Config) -> Store:
    """Open the job's storage and probe that it can be written; connects to the cluster first if the job runs on one."""
    connect_for(config.workers)
    store = open_store(config.storage)
    try:
        probe(store, single_writer=config.storage.single_writer)
    except StorageError as error:
        raise type(error)(f"storage is `{store.uri}`: {error.message}", advice=error.advice) from error
    return store


def ensure_dataset(config: Config, store: Store) -> Dataset:
    """Bring the images of the configuration into storage; the same images give the same version again.

    Where images are copied from shards to others, so are their cached features. Raises what `ingest` raises.
    """
    return ingest(config, store, on_copied=partial(copy_features, store))


def fit(run: Run, dataset: Dataset) -> None:
    """Train the rest of a run, and show each epoch. Of its checkpoints the best and the last remain.

    Args:
        run: The run; a finished run is not changed.
        dataset: Its dataset version.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with a note on the progress of the run.
    """
    from transfer.training.checkpoints import Checkpoints

    newest = Checkpoints(run).newest()
    if newest is not None and newest.progress.complete:
        logger.info("Run %s is finished already.", run.id)
    else:
        _train(run, dataset, newest)
    # Here and not in the loop, because all workers have ended. It also completes this for a job that was killed.
    keep_best_and_last(run)


def _train(run: Run, dataset: Dataset, newest: Checkpoint | None) -> None:
    history = newest.progress.history if newest else ()
    table = EpochTable(run.config.phases, history)
    if table.place:
        logger.info("Run %s goes on after %s.", run.id, table.place)
    try:
        if run.config.workers.count:
            from transfer.training.distributed import train_on_workers

            train_on_workers(run, on_epoch=table.show, epochs_known=len(history))
            return
        import_tensorflow()

        from transfer.training.loop import train as train_here
        from transfer.training.shared_models import process_models

        train_here(run, dataset, shared=process_models(), start=newest, on_epoch=table.show)
    except KeyboardInterrupt as interrupt:
        if table.place:
            interrupt.add_note(f"after {table.place}")
        raise


def evaluated(run: Run, dataset: Dataset, *, gate_asks: bool) -> int:
    """Number of the run's newest report on the held-out split; evaluates the run first if there is none.

    Reports on other splits do not count, because models are not compared on them.

    Args:
        run: A finished run.
        dataset: Its dataset version.
        gate_asks: Whether a gate will run the version that serves on the same images; see `evaluate_anew`.
    """
    split = dataset.held_out_split
    return run.newest_report(split) or evaluate_anew(run, split=split, gate_asks=gate_asks)


def evaluate_anew(run: Run, *, split: str | None, gate_asks: bool = False, exactly: bool = False) -> int:
    """Evaluate a finished run again, on its workers. Returns the number of the new report.

    Args:
        run: A finished run.
        split: `train`, `validation` or `test`; None is the held-out split.
        gate_asks: Leave it to a gate to run the version that serves on the same images; else it runs here.
        exactly: Predict with the graph that is exported, and in no faster way.
    """
    from transfer.evaluation.evaluate import evaluate_run
    from transfer.registry.serving_answers import answers_of_serving

    dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
    split = split or dataset.held_out_split
    serving = answers_of_serving(run.config, run.store, dataset, split, but=run.id, gate_asks=gate_asks)
    return evaluate_run(run, dataset, split=split, exactly=exactly, serving=serving)


def read_report(run: Run, number: int) -> tuple[Report, str]:
    """Read a report of a run. Returns it and the address of its page."""
    digest = run.reports.read_as(ReportEntry, number).files[layout.REPORT]
    report = Report.from_json(run.store.read_verified(layout.report_file(run.folder, number, layout.REPORT), digest))
    return report, f"{run.store.uri}/{layout.report_file(run.folder, number, layout.REPORT_PAGE)}"


def published(run: Run, *, report: int | None = None, again: bool = False) -> ModelVersion:
    """The version of an evaluated run; publishes the run first if there is none.

    The run is evaluated anew if its report has predictions of another graph or with other classes, which differ from
    the exported model's by more than the proof accepts, or if a faster way than that graph rounded too coarsely.

    Args:
        run: An evaluated run.
        report: Number of the report with which it is published. Default: the newest.
        again: Publish a new version even if there is one.

    Raises:
        RegistryError: The run has no report.
        ParityError: The exported model predicts something else than the evaluated one.
    """
    before = published_version(run.store, run.config.name, run.id)
    if before is not None and not again:
        logger.info("Run %s is published already, as version %d.", run.id, before.number)
        return before
    number = report or run.newest_report()
    if number is None:
        raise RegistryError(
            f"Run `{run.id}` has no report to prove the export against.", advice="Run `transfer evaluate` first."
        )
    found, _ = read_report(run, number)
    dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
    if (found.graph, found.untrained_classes) != (run.config.publish.graph, tuple(dataset.untrained_classes)):
        logger.info("Run %s was evaluated with another graph or other classes, and is evaluated anew.", run.id)
        number = evaluate_anew(run, split=found.split)
        found, _ = read_report(run, number)
    try:
        return _published_with(run, number, again=again)
    except DifferentAnswersError as error:
        if found.is_exact:
            raise
        logger.info("%s It was evaluated in a faster way, and is evaluated anew by its graph.", error.message)
    return _published_with(run, evaluate_anew(run, split=found.split, exactly=True), again=again)


def _published_with(run: Run, report: int, *, again: bool) -> ModelVersion:
    number = run_where(run.config.workers, _publish, run.config, run.id, report, again)
    return load_version(run.store, run.config.name, number)


def compared(run: Run, *, champion: int | None, challenger: int) -> tuple[Comparison, dict[str, Thumbnail]]:
    """Compare two versions for the gate, on the held-out images of the run's dataset version.

    Args:
        run: The run that the challenger was published from.
        champion: Number of the version that serves; None if none does.
        challenger: Number of the version that may take its place.

    Returns:
        The comparison, and thumbnails of images that only one of them predicts correctly, by their SHA-256.
    """
    from transfer.registry.compare_versions import compare_versions

    dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
    return compare_versions(run.config, run.store, dataset, champion=champion, challenger=challenger)


def _reopened(config: Config, run_id: str) -> tuple[Run, Dataset]:
    """Open a run and its dataset version in another process than the driver."""
    store = open_store(config.storage)
    run = load_run(store, run_id, config)
    return run, load_dataset(store, run.dataset_name, run.dataset_number)


# These run in a process with TensorFlow. Arguments and results are numbers and ids, not objects with connections.


def _publish(config: Config, run_id: str, report_number: int, again: bool) -> int:
    from transfer.registry.publish import publish_run

    run, dataset = _reopened(config, run_id)
    return publish_run(run, dataset, report_number=report_number, again=again).number
