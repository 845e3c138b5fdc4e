"""The jobs, as plain functions of a configuration: ingest, train, sweep, nightly, evaluate, publish, predict.

Each can be repeated: steps that were done before are found and not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transfer.backbone.class_names import given_names
from transfer.catalog.model import ModelVersion
from transfer.config import Config, PhaseConfig, config_of_network
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.dataset.rehearsal import classes_of, known_classes, listed_candidates, rehearse
from transfer.ensure import (
    Clock,
    ensure_dataset,
    evaluate_anew,
    evaluated,
    fit,
    published,
    read_report,
    writable_storage,
)
from transfer.errors import ConfigError
from transfer.evaluation.report import Report
from transfer.overview import NetworkFacts, overview
from transfer.preflight import check_base_files, check_source, check_source_and_files, check_splits
from transfer.promotion import PromotionChoice, choose, choose_pretrained
from transfer.registry.predict import PredictOutcome
from transfer.registry.predict import predict as predict_images
from transfer.registry.prediction_folder import check_output
from transfer.registry.versions import load_version, pretrained_id, published_version
from transfer.runtime.cluster import connect, connect_for, run_where
from transfer.runtime.fork_server import start_server
from transfer.screening.candidates import candidates_of
from transfer.screening.result import ScreenResult
from transfer.screening.screen import screen_bases
from transfer.storage import Store, cache_home, open_store
from transfer.training.history import final_row
from transfer.training.rows import check_weighted_classes
from transfer.training.run import Run, load_run, open_run
from transfer.tuning.lr_curve import FoundRate
from transfer.tuning.lr_find import check_range, find_rate
from transfer.tuning.plan import sweep_plan
from transfer.tuning.records import metric_text
from transfer.tuning.space import bases_within_reach, check_space, searched_phases, with_values

if TYPE_CHECKING:
    from transfer.nights.summary import NightSummary
    from transfer.tuning.driver import SweepOutcome

logger = logging.getLogger(__name__)

Searched = dict[str, list[PhaseConfig]]
"""Phases whose depths or adapters a sweep searches, by the key that sets them."""


@dataclass(frozen=True)
class TrainOutcome:
    """The results of a training job."""

    run: Run
    dataset: Dataset
    report: Report
    report_uri: str
    choice: PromotionChoice | None
    """The published version, and whether it serves; None if publish.enabled is false."""
    seconds: Mapping[str, float]
    """Duration of each step in this call; steps that were done before took hardly any time."""

    @property
    def version(self) -> ModelVersion | None:
        """The published version."""
        return self.choice.version if self.choice else None


def check(config: Config) -> None:
    """Find errors before a job spends anything.

    The checks: storage can be written and honours put-if-absent; the source and the weights exist; the network can be
    built and cut at the depth of each phase; the head of a warm start exists. Raises the TransferError with which a job
    would end.
    """
    writable_storage(config)
    check_source_and_files(config)
    run_where(config.workers, _check_network, config, {}, None)


def preview(config: Config) -> dict[str, Any]:
    """Check what `check` and ingest check, and the space of the sweep; describe what a job would do.

    Raises the TransferError with which a job would end.
    """
    check_splits(config, sweeps=config.sweep is not None)
    if config.sweep is not None:
        check_space(config)
    store = writable_storage(config)
    check_source_and_files(config)
    searched = _check_searched(config) if config.sweep is not None else {}
    with listed_candidates(config, store) as candidates:
        known = known_classes(candidates) if candidates else []
        classes = classes_of(candidates, known) if candidates else []
        of_head = classes if candidates and candidates.listing.is_whole else None
        # Before images are read, because a job initializes the devices of TensorFlow first, too.
        network = run_where(config.workers, _check_network, config, searched, of_head)
        if of_head is not None:
            check_weighted_classes(config.training.class_weights, of_head, of=config.dataset.source)
        images = rehearse(candidates, known=known, classes=classes) if candidates else None
    sweep = sweep_plan(config) if config.sweep is not None else None
    return overview(config, store, images=images, network=network, sweep=sweep)


def ingest(config: Config) -> Dataset:
    """Bring the configured images into storage as a dataset version; the same images give the same version again."""
    store = writable_storage(config)
    check_source_and_files(config)
    return ensure_dataset(config, store)


def train(config: Config, *, run_id: str | None = None) -> TrainOutcome:
    """The main job: ingest, train, evaluate, publish, promote.

    Repeating it continues an interrupted run from its last checkpoint, and finds a finished one.

    Args:
        config: The configuration of the job.
        run_id: Id of the run. Default: an id that follows from everything on which the run depends.

    Raises:
        TransferError: The error of the step that failed.
    """
    clock = Clock()
    with clock.step("check"):
        check_splits(config, sweeps=False)
        if config.workers.count == 0:
            # Its processes check images and prove the export. It imports TensorFlow in parallel with this process.
            start_server()
        check(config)
    store = open_store(config.storage)
    with clock.step("ingest"):
        dataset = ensure_dataset(config, store)
    run = open_run(store, config, dataset, run_id=run_id)
    logger.info("Run %s on dataset %s.", run.id, dataset.reference)
    return _finish(run, dataset, clock)


def sweep(config: Config) -> tuple[SweepOutcome, TrainOutcome]:
    """Search the configuration's `sweep.space`, then evaluate, publish and promote the winner like a single run.

    Repeating it continues an interrupted sweep, and finds a finished one.
    """
    # Imported late: it loads Ray Tune, which no other job needs.
    from transfer.tuning.driver import run_sweep

    clock = Clock()
    with clock.step("check"):
        store = _check_sweep(config)
    with clock.step("ingest"):
        dataset = ensure_dataset(config, store)
    with clock.step("sweep"):
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
    won = _finish(run, dataset, clock)
    if winner.status == "stopped":
        at_its_end = final_row(won.report.history, run.config.phases)
        logger.info(
            "At the end of its run, validation accuracy is %s and loss %.4f; trial %d won with %s %s.",
            metric_text(at_its_end.validation_accuracy, "accuracy"),
            at_its_end.validation_loss,
            winner.number,
            outcome.result.metric,
            metric_text(winner.value, outcome.result.metric),
        )
    return outcome, won


def nightly(config: Config) -> tuple[NightSummary, str]:
    """Work on the unfinished night, or on the next one. Returns its summary and the address of its page.

    A night ingests new images, checks them, trains, and promotes the new model if it passes the gate.
    """
    # Imported late: it loads the libraries that draw pages.
    from transfer.nights.night import run_night

    return run_night(config)


def evaluate(config: Config, *, run_id: str, split: str | None = None) -> tuple[Report, str]:
    """Evaluate a finished run again.

    Args:
        config: Its storage and workers are used; everything else is in the run's own configuration.
        run_id: The run.
        split: `train`, `validation` or `test`. Default: the held-out split of the run's dataset version.

    Returns:
        The report, and the address of its page.

    Raises:
        TrainingError: There is no such run, or it is not finished.
        DatasetError: The split is empty.
    """
    run = load_run(writable_storage(config), run_id, config)
    return read_report(run, evaluate_anew(run, split=split))


def publish(config: Config, *, run_id: str, again: bool = False) -> PromotionChoice:
    """Publish an evaluated run, and promote it as `publish.promote` says.

    It is published with its newest report on the held-out split, or with its newest report if that split has none.

    Args:
        config: Names the storage and the model.
        run_id: The run.
        again: If the run is published already, publish it as a new version, exported by the present code. The new
            version is promoted only if the version that it replaces serves.

    Returns:
        The version, and whether it serves.

    Raises:
        ConfigError: The run belongs to another model.
        RegistryError: It cannot be exported, or the exported model predicts differently.
    """
    run = load_run(writable_storage(config), run_id, config)
    if run.config.name != config.name:
        raise ConfigError(
            f"Run `{run_id}` is one of `{run.config.name}`, and `name` in the configuration is `{config.name}`.",
            advice="Publish it with the configuration that it was trained with: it becomes a version of that model.",
        )
    dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
    return _publish(run, run.newest_report(dataset.held_out_split), again=again)


def publish_pretrained(config: Config) -> PromotionChoice:
    """Publish `base` with its own classifier, as it was pretrained; promote it as `publish.promote` says.

    The same network with the same names is published once: repeating it finds the version.

    Args:
        config: Names the storage, the model, the network (`base`) and the names of its classes (`publish.classes`).

    Returns:
        The version, and whether it serves.

    Raises:
        ConfigError: The names do not fit the network's outputs.
        BackboneError: The network cannot be loaded, or does not end in a classifier.
        ParityError: The exported model predicts differently.
    """
    store = writable_storage(config)
    check_base_files(config.base, config.storage)
    names = given_names(config.publish.classes)
    version = published_version(store, config.name, pretrained_id(config, names))
    if version is None:
        number = run_where(config.workers, _publish_pretrained, config, names)
        version = load_version(store, config.name, number)
    else:
        logger.info("%s is published already, as version %d.", config.base.model, version.number)
    return choose_pretrained(config, store, version)


def predict_pretrained(network: str, overrides: Sequence[str] = (), **options: Any) -> PredictOutcome:
    """Predict images with a pretrained classifier as it is, without a configuration.

    It is published like any other model, in a storage in this machine's cache folder; the next call finds it there.

    Args:
        network: A network by name, or a file: `base.model`.
        overrides: Strings `dotted.key=value`, such as `base.image_size=299` or `publish.classes=names.txt`.
        options: Arguments of `predict` but for `version`.

    Raises:
        TransferError: What `publish_pretrained` and `predict` raise.
    """
    config = config_of_network(network, overrides, storage=cache_home() / "pretrained")
    return predict(config, version=publish_pretrained(config).version.number, **options)


def predict(
    config: Config,
    *,
    images: str | Sequence[str] = (),
    dataset: str | None = None,
    split: str | None = None,
    output: str | None = None,
    overwrite: bool = False,
    version: int | None = None,
    top_k: int | None = None,
    embeddings: bool = False,
) -> PredictOutcome:
    """Predict images with the published model, on all workers. `images`: one or several images, folders or prefixes.

    Arguments, result and errors are those of `transfer.registry.predict.predict`.
    """
    if output is not None:
        # Fail before workers are started.
        check_output(output, config.storage, overwrite=overwrite)
    connect_for(config.workers)
    return predict_images(
        config,
        images=[images] if isinstance(images, str) else list(images),
        dataset=dataset,
        split=split,
        output=output,
        overwrite=overwrite,
        version=version,
        top_k=top_k,
        embeddings=embeddings,
    )


def lr_find(
    config: Config, *, phase: int = 0, low: float = 1e-7, high: float = 10.0, steps: int = 200
) -> tuple[FoundRate, str]:
    """Suggest a learning rate for a phase. No run and no model is changed; the same test is found again.

    Args:
        config: The configuration.
        phase: Index of the phase, from 0.
        low: Learning rate of the first step.
        high: Learning rate of the last step.
        steps: Number of steps, one batch each.

    Returns:
        The result of the test, and the address of its page.

    Raises:
        ConfigError: There is no such phase, or the range or the number of steps makes no test.
        TrainingError: The loss diverged in the first steps.
    """
    check_range(config, phase=phase, low=low, high=high, steps=steps)
    check(config)
    store = open_store(config.storage)
    dataset = ensure_dataset(config, store)
    found, page = run_where(config.workers, _lr_find, config, dataset.number, phase, low, high, steps)
    return found, f"{store.uri}/{page}"


def screen(config: Config, *, bases: Sequence[str]) -> tuple[ScreenResult, str]:
    """Compare pretrained networks by their features of the training images. Nothing is trained.

    Args:
        config: The configuration; its own base is not loaded, unless it is among `bases`.
        bases: Networks, each as `base.model` names it, or as `name@size` with an image size of its own.

    Returns:
        The result, and the address of its page. A network that cannot be had is in it with the reason.

    Raises:
        ConfigError: There is no network, one is named twice, or a size is no number.
    """
    candidates = candidates_of(config, list(bases))
    store = writable_storage(config)
    check_source(config.dataset, config.storage)
    dataset = ensure_dataset(config, store)
    result, page = screen_bases(config, dataset, store, candidates)
    return result, f"{store.uri}/{page}"


def _check_sweep(config: Config) -> Store:
    """Check a sweep as `check` does, including its searched values; connects to the cluster. Returns the storage."""
    check_splits(config, sweeps=True)
    check_space(config)
    connect()
    store = writable_storage(config)
    check_source_and_files(config)
    searched = _check_searched(config)
    if searched:
        # On the cluster even if `workers.count` is 0, because the driver of a sweep imports no TensorFlow.
        workers = config.workers.model_copy(update={"count": max(1, config.workers.count)})
        run_where(workers, _check_network, config, searched, None)
    return store


def _check_searched(config: Config) -> Searched:
    """Check that files of searched bases exist. Returns the searched phases, which only the network can check."""
    for bases in bases_within_reach(config).values():
        for base in bases:
            check_base_files(base, config.storage)
    found = {
        key: [phase for phase in phases if phase.lora is not None or phase.unfreeze not in (0, "all")]
        for key, phases in searched_phases(config).items()
    }
    return {key: phases for key, phases in found.items() if phases}


def _finish(run: Run, dataset: Dataset, clock: Clock) -> TrainOutcome:
    """Train the rest of a run, evaluate it, publish it."""
    publish = run.config.publish
    with clock.step("train"):
        fit(run, dataset)
    with clock.step("evaluate"):
        number = evaluated(run, dataset, gate_asks=publish.enabled and publish.promote == "gate")
    choice = None
    if publish.enabled:
        with clock.step("publish"):
            choice = _publish(run, number)
    # Publishing may have evaluated the run again.
    report, uri = read_report(run, choice.version.of_run.report if choice else number)
    return TrainOutcome(run, dataset, report, uri, choice, clock.seconds)


def _publish(run: Run, number: int | None, *, again: bool = False) -> PromotionChoice:
    before = published_version(run.store, run.config.name, run.id) if again else None
    version = published(run, report=number, again=again)
    report, _ = read_report(run, version.of_run.report)
    return choose(run, version, report, instead_of=before)


# These run in a process with TensorFlow. Arguments and results are numbers and ids, not objects with connections.


def _check_network(config: Config, searched: Searched, classes: list[str] | None) -> NetworkFacts:
    from transfer.network_check import check_network

    return check_network(config, searched=searched, classes=classes)


def _publish_pretrained(config: Config, names: list[str] | None) -> int:
    from transfer.registry.pretrained import publish_classifier

    return publish_classifier(config, open_store(config.storage), names).number


def _lr_find(
    config: Config, dataset_number: int, phase: int, low: float, high: float, steps: int
) -> tuple[FoundRate, str]:
    store = open_store(config.storage)
    dataset = load_dataset(store, config.dataset_name, dataset_number)
    return find_rate(store, config, dataset, phase=phase, low=low, high=high, steps=steps)
