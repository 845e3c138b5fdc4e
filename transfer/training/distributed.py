"""Ray Train glue: the same `train` on a group of workers. The driver never imports TensorFlow.

Ray's own `TensorflowTrainer` imports TensorFlow in the driver and the controller and forces tf_keras on the workers.
All that multi-worker TensorFlow needs is TF_CONFIG: who the workers are, and which of them this process is.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero

from transfer.catalog import layout
from transfer.catalog.run import CheckpointEntry, EpochRow
from transfer.config import Config, StorageConfig, WorkersConfig
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import DivergedError, StorageError, TrainingError, TransferError
from transfer.features.layout import Request
from transfer.features.ray_extract import extract_on_cluster
from transfer.runtime.cluster import S3_ENVIRONMENT, run_where
from transfer.runtime.ray_private.train import InterruptibleTrainer
from transfer.runtime.startup import start_worker
from transfer.storage import open_store
from transfer.training.heartbeat import TOGETHER, beating, during
from transfer.training.run import Run, load_run
from transfer.training.watchdog import StartDeadline, Watchdog


@dataclass
class TensorFlowBackendConfig(BackendConfig):
    """Asks Ray Train to set TF_CONFIG on each worker."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that does it."""
        return TensorFlowBackend


class TensorFlowBackend(Backend):
    """Sets TF_CONFIG on each worker of a starting group."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:  # noqa: ARG002 - Ray's signature
        """Called by Ray's controller each time a group has started, also after a failure."""
        addresses = worker_group.execute(_free_address)
        ready = [
            worker_group.execute_single_async(rank, _set_tf_config, addresses, rank) for rank in range(len(addresses))
        ]
        ray.get(ready)


def _free_address() -> str:
    # TensorFlow cannot take over an open socket. So the port is only known to be free now; it is used within seconds.
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_tf_config(addresses: list[str], rank: int) -> None:
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})


ELASTIC_START_TIMEOUT_S = 10.0
"""Start timeout of a group whose size Ray chose: Ray may count on a dead machine, since it notices a death in 20 s."""
POLL_S = 0.5
"""Seconds between two attempts to read the next checkpoint."""


def train_on_workers(run: Run, *, on_epoch: Callable[[EpochRow], None] | None = None, epochs_known: int = 0) -> None:
    """Train a run on `workers.count` Ray workers; they continue from its newest checkpoint after a failure.

    With `workers.min_count` the group is smaller while the cluster has no room for all workers. Another thread of this
    process calls `on_epoch` for each epoch that ends, but not for the first `epochs_known`. Raises the TransferError of
    a worker, and TrainingError if workers keep failing or do not start in time.
    """
    workers = run.config.workers
    is_elastic = len(workers.counts) > 1
    start_timeout_s = min(workers.start_timeout_s, ELASTIC_START_TIMEOUT_S) if is_elastic else workers.start_timeout_s
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_timeout_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(workers.hang_timeout_s)
    for name, value in S3_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    extract_before_training(run)
    trainer = InterruptibleTrainer(
        _worker_main,
        train_loop_config={
            "config": run.config.model_dump(mode="json"),
            "run": {"id": run.id, "dataset_name": run.dataset_name, "dataset_number": run.dataset_number},
        },
        backend_config=TensorFlowBackendConfig(),
        scaling_config=ScalingConfig(
            num_workers=(workers.counts[0], workers.count) if is_elastic else workers.count,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # Each attempt has a new name: Ray would silently resume a name that it knows, but only the run's own
            # checkpoints may decide where it continues.
            name=f"{run.id}-{time.time_ns():x}",
            storage_path=ray_storage_path(run.config.storage),
            # Ray tries to start the group until StartDeadline ends the run.
            failure_config=FailureConfig(max_failures=workers.max_failures, controller_failure_limit=-1),
            worker_runtime_env={"env_vars": S3_ENVIRONMENT},
            # At a lower level Ray logs each group and each report.
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[
                Watchdog(run.id, stall_timeout_s=workers.stall_timeout_s),
                StartDeadline(workers.start_timeout_s, needs=_what_it_needs(workers)),
            ],
        ),
    )
    try:
        with _epochs_followed(run, epochs_known, on_epoch) if on_epoch else nullcontext():
            outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise _explained(error, run) from error
    except KeyboardInterrupt:
        trainer.abort()
        raise
    if isinstance(outcome, TransferError):
        raise outcome


@contextmanager
def _epochs_followed(run: Run, epochs_known: int, on_epoch: Callable[[EpochRow], None]) -> Iterator[None]:
    """Call `on_epoch` for each epoch that ends while the block runs, as the run's checkpoints show.

    The workers' own output is no source: Ray may print it twice or not at all, and puts a process's name before it.
    """
    first = run.checkpoints.newest_number() + 1
    over = threading.Event()

    def follow() -> None:
        number, known = first, epochs_known
        while True:
            is_last = over.wait(POLL_S)
            # After an error the next round tries again. If storage is gone for good, training itself fails.
            with suppress(StorageError):
                while True:
                    history = run.checkpoints.read_as(CheckpointEntry, number).progress.history
                    for row in history[known:]:
                        on_epoch(row)
                    number, known = number + 1, max(known, len(history))
            if is_last:
                return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()


def extract_before_training(run: Run) -> None:
    """Compute and cache the features that the run's phases train on, with as many actors as the run has replicas.

    Does nothing for a single replica, which computes them itself when a phase needs them. Raises what
    `extract_on_cluster` raises.
    """
    workers = run.config.workers
    if workers.replicas > 1:
        dataset = load_dataset(run.store, run.dataset_name, run.dataset_number)
        requests = run_where(workers, _choose_inputs, run.config, run.id, dataset)
        extract_on_cluster(run.config, dataset, requests)


def _choose_inputs(config: Config, run_id: str, dataset: Dataset) -> list[Request]:
    """The features to cache for a run. Runs in a process with TensorFlow."""
    from transfer.training.feature_plan import FeaturePlan
    from transfer.training.shared_models import untrained_model

    run = load_run(open_store(config.storage), run_id, config)
    inputs = FeaturePlan(run, dataset, untrained_model(run, dataset))
    inputs.claim()
    return inputs.requests()


def ray_storage_path(storage: StorageConfig) -> str:
    """URI, without credentials, of the place in the configured storage where Ray Train keeps its own state."""
    if not storage.uri.startswith("s3://"):
        return str(Path(storage.uri.removeprefix("file://")) / layout.RAY)
    uri = f"{storage.uri.rstrip('/')}/{layout.RAY}"
    options = []
    if storage.endpoint_url:
        scheme, _, host = storage.endpoint_url.partition("://")
        options += [f"scheme={scheme}", f"endpoint_override={quote(host.rstrip('/'), safe='')}"]
    if storage.region:
        options.append(f"region={storage.region}")
    return f"{uri}?{'&'.join(options)}" if options else uri


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise errors of TensorFlow as RuntimeErrors, with the same traceback.

    To unpickle an error of TensorFlow, Ray's controller would load TensorFlow before it restarts the workers.
    """
    start_worker()
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise RuntimeError(f"{type(error).__name__}: {error.message}").with_traceback(error.__traceback__) from None


@_plain_errors()
def _worker_main(settings: dict[str, Any]) -> TransferError | None:
    """The train function of each Ray worker. Ray runs it in a thread that is not the main one."""
    from transfer.training.step import create_strategy

    config = Config.model_validate(settings["config"])
    # Before anything else: a multi-worker strategy must set TensorFlow's runtime up first.
    strategy = create_strategy(config.workers.collectives)

    from transfer.dataset.order import WorkerSlice
    from transfer.training.checkpoints import Checkpoints
    from transfer.training.loop import train
    from transfer.training.shared_models import SharedModels

    store = open_store(config.storage)
    run = Run(store, config=config, **settings["run"])
    dataset = load_dataset(store, run.dataset_name, run.dataset_number)
    context = ray.train.get_context()
    worker = WorkerSlice(context.get_world_rank(), context.get_world_size())
    # Ray Train prints everything that is logged, its own reports included, and all ranks log the same.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("transfer").setLevel(logging.WARNING if worker.index else logging.INFO)
    checkpoints = Checkpoints(run)
    newest = checkpoints.newest() if worker.index == 0 else None
    # All workers must start from the same checkpoint, even if a listing does not show the newest one to all of them.
    number = broadcast_from_rank_zero(newest.number if newest else None)
    start = checkpoints.read(number) if number is not None else None
    try:
        with beating():
            train(
                run,
                dataset,
                shared=SharedModels(strategy),
                worker=worker,
                start=start,
                on_epoch=_report,
            )
    except DivergedError as error:
        # All workers see the same loss, and a restart would see it again. So it is returned: Ray restarts after errors.
        return error
    return None


def _report(row: EpochRow) -> None:
    with during(TOGETHER):  # The report is a barrier.
        ray.train.report(row.model_dump())


def _explained(error: Exception, run: Run) -> TransferError:
    """The TransferError that a worker or the controller raised; otherwise a TrainingError with Ray's message."""
    failures = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    for failure in failures:
        if isinstance(failure, TransferError):
            return failure
        cause = getattr(failure, "cause", None)
        if isinstance(cause, TransferError):
            return cause
    return TrainingError(
        f"Training run `{run.id}` failed on its workers: {str(error).strip().splitlines()[-1]}",
        advice=_what_it_needs(run.config.workers),
    )


def _what_it_needs(workers: WorkersConfig) -> str:
    return (
        f"It needs {workers.counts[0]} workers of {workers.cpus_per_worker:g} CPU and {workers.gpus_per_worker} GPU "
        "at the same time (see `ray status`). Repeat the command to continue from the last checkpoint."
    )
