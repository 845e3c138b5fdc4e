"""The driver of a sweep: runs Ray Tune and the actors that train trials, and records the result. No TensorFlow here."""

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

# Share of the resource `node:<ip>` (capacity 1) that each Tune trial reserves: trials take no CPU slot, so they neither
# wait for actors nor keep CPUs from them, and they stay on the driver's node.
_SLIVER = 0.001
# Largest number of failed trials whose reasons an error or a log line has.
_NAMED = 3


@dataclass(frozen=True)
class SweepOutcome:
    """The result of a sweep that ended, and the address of its page."""

    result: SweepResult
    page_uri: str

    @property
    def winner(self) -> TrialRecord:
        """The trial that won."""
        return next(trial for trial in self.result.trials if trial.number == self.result.winner)


def run_sweep(config: Config, dataset: Dataset, store: Store) -> SweepOutcome:
    """Run a sweep to its end, or continue an interrupted one. A finished sweep is returned as it is.

    Raises TrainingError if every trial failed, DatasetError without a validation split, and what preparing raises.
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
        # In other sweeps each trial does this when it ends. In a population, other trials may branch from any
        # checkpoint until the sweep is over.
        for trial in result.trials:
            if trial.run_id:
                keep_best_and_last(load_run(store, trial.run_id, config))
    if result.winner is None:
        raise TrainingError(
            f"No trial of sweep {sweep.id} has a result. {_reasons(result.trials)}",
            advice=f"Change what is searched.{_tried_again(result)}",
        )
    # A late import, because it loads matplotlib, which is not needed to find a finished sweep.
    from transfer.tuning.page import render

    return SweepOutcome(result, records.put_result(result, page=render(result)))


def _tell(result: SweepResult, *, planned: int) -> None:
    """Log how the sweep ended, with the number of trials of each status."""
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    never = planned - len(result.trials)
    logger.info("Sweep %s ended because %s: %s, %d not started.", result.id, result.ended_by, counts, never)
    failed = [trial for trial in result.trials if trial.status == "failed"]
    if failed:
        logger.warning("%d of %d trials failed. %s%s", len(failed), planned, _reasons(failed), _tried_again(result))


def _tried_again(result: SweepResult) -> str:
    """A sentence on failed trials that will be tried again, or nothing if there are none."""
    if result.is_final or not any(trial.failed_by == "memory" for trial in result.trials):
        return ""
    return " Trials that ran out of memory are tried again when the command is repeated."


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
    # Tune's old output: the new one ignores `verbose=0`.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune's handler of Ctrl-C would wait until all trials have responded.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    # Tune would pass the driver's credentials to its trials through Ray, which writes them into its logs. Every node
    # has its own credentials.
    keep_from_trials("AWS_")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    config = sweep.config
    settings = sweep_of(config)
    by_number = {trial.number: trial for trial in trials or ()}
    budget = stopper(config)
    trainable = tune.with_parameters(TuneTrial, sweep=sweep, actors=list(actors), trials=by_number, flops=flops)
    # All trials of a population start together, and those without an actor are paused. Other searches start a trial
    # when an actor is free.
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
                # Without actors, a trial's process owns its group of workers, which end only with the process.
                reuse_actors=bool(actors),
            ),
            run_config=tune.RunConfig(
                # A temporary folder: Tune's own state is pickled and never read. A sweep resumes from its own records.
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
        # One actor instead of this process, which may not load TensorFlow. It gets all that the largest machine has.
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
            f"No process that trains trials started within workers.start_timeout_s, {workers.start_timeout_s:g} s.",
            advice=f"Each needs {cpus:g} CPU and {gpus:g} GPU (see `ray status`). Or raise workers.start_timeout_s.",
        )
    return actors


def _extract(actors: Sequence[Any]) -> dict[int, float]:
    """Let the actors compute the features that the trials need, in one pass over the images.

    Returns the multiply-adds of each trial that is known already.
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
    """The same for trials that each have their own group of workers."""
    found = run_where(sweep.config.workers, survey, sweep, trials)
    extract_on_cluster(sweep.config, sweep.dataset, found.requests)
    return found.flops
