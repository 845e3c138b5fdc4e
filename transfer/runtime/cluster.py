"""Running TensorFlow work in this process, or as a task on the Ray cluster."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

from transfer.config import WorkersConfig
from transfer.errors import ClusterError, TransferError
from transfer.runtime.memory import memory_explained
from transfer.runtime.ray_private.cluster import TOKEN_LOGGER, filter_printed_lines
from transfer.runtime.startup import import_tensorflow, start_worker, talk_pattern

Answer = TypeVar("Answer")

S3_ENVIRONMENT = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""Environment of every worker: some S3 services refuse checksums in trailers, which recent SDKs send by default."""


_TALK_OF_RAY = (
    # Ray Train asks the dashboard once a second; a local cluster has none.
    "Failed to query Ray Train Controller actor state",
    # About an actor of Ray Train.
    r"\[.* E .*\] core_worker.cc:\d+: Actor with class name: 'PreemptionWatcher'",
)
"""Beginnings of warnings of Ray's own processes that are of no use to a user."""


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names (as in a submitted job), or start a local one. Safe to repeat.

    A local cluster uses token authentication, with a token that Ray makes and keeps in the user's home.
    """
    import ray

    # Otherwise workers would run in a folder under /tmp, where relative paths have another meaning.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Ray sends usage statistics of clusters that it starts, unless they are disabled.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        # By default Ray would join the cluster that was started last on this machine, even that of another user.
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        tokens = logging.getLogger(TOKEN_LOGGER)
        tokens.addFilter(_is_no_talk_of_tokens)
        ray.init(address, include_dashboard=False, log_to_driver=True, logging_level="warning")
        tokens.removeFilter(_is_no_talk_of_tokens)
        _leave_out_talk()


def _is_no_talk_of_tokens(record: logging.LogRecord) -> bool:
    """False for the message that tokens are enabled, which is no warning."""
    return "is enabled" not in record.getMessage()


def _leave_out_talk() -> None:
    """Leave out useless lines that processes of the cluster print. Their own logs have all lines.

    Ray prints them from a thread of this process, so `quiet_stderr` does not filter them.
    """
    is_talk = re.compile(f"{talk_pattern()}|^({'|'.join(_TALK_OF_RAY)})").search
    filter_printed_lines(lambda line: not is_talk(line))


def connect_for(workers: WorkersConfig) -> None:
    """Connect if `workers.count` is not 0, and wait until the cluster can start a worker.

    Raises ClusterError if it cannot within `workers.start_timeout_s`. Later requests of a job to Ray have no deadline.
    """
    if workers.count == 0:
        return
    connect()
    import ray

    try:
        ray.get(_on_worker(workers, _nothing).remote(), timeout=workers.start_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(
            f"The cluster could not start a worker in {workers.start_timeout_s:g} s.",
            advice=f"A worker needs {workers.cpus_per_worker:g} CPU and {workers.gpus_per_worker} GPU of one machine "
            "(see `ray status`). Where machines take longer to come, set workers.start_timeout_s higher.",
        ) from error


def anywhere() -> Any:
    """Scheduling strategy of tasks and actors: outside of the resources that a trial of Ray Tune has reserved."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(placement_group=None)


def run_where(workers: WorkersConfig, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call `function(*arguments)` where TensorFlow may be imported: here if `workers.count` is 0, else as a Ray task.

    The task has the resources of a worker, so the driver of a cluster job needs no GPU and never imports TensorFlow.
    Ray pickles arguments and result. A TransferError is raised here as it was raised there.
    """
    if workers.count == 0:
        import_tensorflow()
        return function(*arguments)
    import ray

    try:
        answer: Answer = ray.get(_on_worker(workers, _explained).remote(function, *arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TransferError):
            raise error.cause from None
        raise
    return answer


def _on_worker(workers: WorkersConfig, function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(
        num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker, scheduling_strategy=anywhere()
    )(function)


def _explained(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a function. Errors about memory become ours, because the driver has no TensorFlow to unpickle its errors."""
    start_worker()
    with memory_explained("A task on the cluster"):
        return function(*arguments)


def _nothing() -> None:
    """The task that shows that a worker can start."""
