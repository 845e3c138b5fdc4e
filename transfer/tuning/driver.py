"""The driver of a sweep: Ray Tune, the actors that train for it, and what is written down. It imports no TensorFlow."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import DatasetError, TrainingError, TransferError
from transfer.features.ray_extract import extract_on_cluster
from transfer.runtime.cluster import S3_ENVIRONMENT, run_where
from transfer.runtime.ray_private.tune import keep_from_trials
from transfer.storage import Store
from transfer.training.checkpoints import keep_best_and_last
from transfer.training.run import load_run
from transfer.tuning.callbacks import Notes
from transfer.tuning.plan import gpus_of_trial, trials_at_once
from transfer.tuning.records import Sweep, SweepRecords, SweepResult, TrialRecord, open_sweep
from transfer.tuning.search import METRIC, MODE, num_samples, param_space, scheduler, searcher, stopper
from transfer.tuning.space import Trial, fixed_trials, sweep_of
from transfer.tuning.trainable import TuneTrial
from transfer.tuning.trial_actor import Survey, TrialActor, survey

logger = logging.getLogger(__name__)

# Of the machine itself, which Ray counts as 1 whatever it has: Tune's trials neither take a CPU from what trains nor
# wait for one, and they stay on the driver's machine.
_SLIVER = 0.001
# Trials whose reasons an error or a log line repeats.
_NAMED = 3


@dataclass(frozen=True)
class SweepOutcome:
    """A sweep that ended, and where its page is."""

    result: SweepResult
    page_uri: str

    @property
    def winner(self) -> TrialRecord:
        """The trial that won."""
        return next(trial for trial in self.result.trials if trial.number == self.result.winner)


def run_sweep(config: Config, dataset: Dataset, store: Store) -> SweepOutcome:
    """Run a sweep to its end, or go on with one that was interrupted. A finished one is found.

    Raises TrainingError when every trial failed, DatasetError without a validation split, and what preparing raises.
    """
    if not dataset.rows("validation"):
        raise DatasetError(
            f"A sweep compares trials on the validation split, and {dataset.reference} has none.",
            advice="Set dataset.validation above 0 and ingest again.",
        )
    sweep = open_sweep(store, config, dataset)
    records = SweepRecords(sweep)
    found = records.result()
    if found is not None and found[0].is_final:
        logger.info("Sweep %s is finished already.", sweep.id)
        return SweepOutcome(*found)
    logger.info("Sweep %s on dataset %s.", sweep.id, dataset.reference)
    trials = fixed_trials(config)
    actors = _start_actors(sweep, trials) if config.workers.count < 2 else []
    try:
        flops = _extract(actors) if actors else _extract_for_groups(sweep, trials or [])
        started = time.monotonic()
        result = _tune(sweep, records, actors, trials, flops).result(seconds=time.monotonic() - started)
    finally:
        for actor in actors:
            ray.kill(actor)
    _tell(result, planned=sweep_of(config).trial_count)
    if result.is_final and sweep_of(config).scheduler.kind == "pbt":
        # Of other sweeps each trial does so when it ends; here others went on from them until now.
        for trial in result.trials:
            if trial.run_id:
                keep_best_and_last(load_run(store, trial.run_id, config))
    if result.winner is None:
        raise TrainingError(
            f"No trial of sweep {sweep.id} has a result. {_reasons(result.trials)}",
            advice=f"Change what is searched.{_tried_again(result)}",
        )
    # Late: it loads matplotlib, which finding a finished sweep does not need.
    from transfer.tuning.page import render

    return SweepOutcome(result, records.put_result(result, page=render(result)))


def _tell(result: SweepResult, *, planned: int) -> None:
    """Log how the sweep ended, with what became of every trial."""
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    never = planned - len(result.trials)
    logger.info("Sweep %s ended because %s: %s, %d not started.", result.id, result.ended_by, counts, never)
    failed = [trial for trial in result.trials if trial.status == "failed"]
    if failed:
        logger.warning("%d of %d trials failed. %s%s", len(failed), planned, _reasons(failed), _tried_again(result))


def _tried_again(result: SweepResult) -> str:
    """What to say of trials that failed and whose next attempt may not."""
    if result.is_final or not any(trial.failed_by == "memory" for trial in result.trials):
        return ""
    return " Those that ran out of memory are tried again when the command is repeated."


def _reasons(trials: Sequence[TrialRecord]) -> str:
    named = "; ".join(f"trial {trial.number}: {trial.reason}" for trial in trials[:_NAMED])
    return named if len(trials) <= _NAMED else f"{named}; and {len(trials) - _NAMED} more"


def _tune(
    sweep: Sweep,
    records: SweepRecords,
    actors: Sequence[Any],
    trials: Sequence[Trial] | None,
    flops: Mapping[int, float],
) -> Notes:
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Of its two ways to report, the only one that `verbose=0` silences.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would go on after Ctrl-C until all trials have answered.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune would hand the driver's credentials on to its trials, by way of Ray, which writes them into its logs. Every
    # node has its own.
    keep_from_trials("AWS_")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    config = sweep.config
    settings = sweep_of(config)
    by_number = {trial.number: trial for trial in trials or ()}
    budget = stopper(config)
    trainable = tune.with_parameters(TuneTrial, sweep=sweep, actors=list(actors), trials=by_number, flops=flops)
    # A population lives together; those that have no actor wait, paused. Other searches make trials as actors get free.
    is_population = settings.scheduler.kind == "pbt"
    room = len(actors) or trials_at_once(config, config.workers.count)
    share = 1 / room - _SLIVER if is_population else _SLIVER
    here = f"node:{ray.util.get_node_ip_address()}"
    with Notes(sweep, records, budget, by_number) as notes, tempfile.TemporaryDirectory(prefix="transfer-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, tune.PlacementGroupFactory([{here: share}])),
            param_space=param_space(config),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode=MODE,
                scheduler=scheduler(config),
                search_alg=searcher(config, records.started()),
                num_samples=num_samples(config),
                max_concurrent_trials=None if is_population else room,
                # One that drives a group of workers takes them along when it ends.
                reuse_actors=bool(actors),
            ),
            run_config=tune.RunConfig(
                # What Tune itself would go on from is pickled and never read: a sweep's own records decide that.
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=budget,
                callbacks=[notes],
                verbose=0,
            ),
        )
        tuner.fit()
    return notes


def _start_actors(sweep: Sweep, trials: Sequence[Trial] | None) -> list[Any]:
    workers = sweep.config.workers
    cpus, gpus = workers.cpus_per_worker, gpus_of_trial(sweep.config)
    if workers.count == 0:
        # In this process, if it were not for Ray: one actor with all that a machine has, the largest of a cluster's.
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus, cpus = max((has.get("GPU", 0.0), has.get("CPU", 0.0)) for has in machines)
        count = 1
    else:
        count = trials_at_once(sweep.config, 1)
    environment = {**S3_ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2", **({} if gpus else {"CUDA_VISIBLE_DEVICES": "-1"})}
    create = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, runtime_env={"env_vars": environment})(
        TrialActor
    )
    actors = [create.remote(sweep, trials) for _ in range(count)]
    ready, _ = ray.wait([actor.ready.remote() for actor in actors], num_returns=1, timeout=workers.start_timeout_s)
    if not ready:
        raise TrainingError(
            f"No process that trains trials started in {workers.start_timeout_s:g} s.",
            advice=f"Each needs {cpus:g} CPU and {gpus:g} GPU (see `ray status`); or raise workers.start_timeout_s.",
        )
    return actors


def _extract(actors: Sequence[Any]) -> dict[int, float]:
    """Have the actors compute, in one pass over the images, what trials will need of the frozen part.

    Returns each trial's multiply-adds, as far as trials are known.
    """
    try:
        found: Survey = ray.get(actors[0].survey.remote())
        ray.get([actor.extract.remote(found.requests, part, len(actors)) for part, actor in enumerate(actors)])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TransferError):
            raise error.cause from None
        raise
    return found.flops


def _extract_for_groups(sweep: Sweep, trials: Sequence[Trial]) -> dict[int, float]:
    """The same where each trial has a group of workers to itself."""
    found = run_where(sweep.config.workers, survey, sweep, trials)
    extract_on_cluster(sweep.config, sweep.dataset, found.requests)
    return found.flops
