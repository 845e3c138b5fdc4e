"""Where a piece of TensorFlow work runs: in this process, or as a task on the Ray cluster."""

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
"""For every worker: some S3 services refuse checksums in trailers, which recent SDKs send unless told otherwise."""


_TALK_OF_RAY = (
    # It asks the dashboard, which a local cluster has none of, once a second.
    "Failed to query Ray Train Controller actor state",
    # Of an actor of Ray Train's own.
    r"\[.* E .*\] core_worker.cc:\d+: Actor with class name: 'PreemptionWatcher'",
)
"""How lines begin that Ray's own processes print as warnings, and that nobody can use."""


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names (as in a submitted job), or start a local one. Safe to repeat.

    A local cluster uses token authentication, with a token that Ray makes and keeps in the user's home.
    """
    import ray

    # Workers would otherwise run somewhere under /tmp, and relative paths would mean something else there.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Ray reports what is run on a cluster that it starts to its makers, unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        # Left to itself, Ray would join whatever cluster this machine started last, somebody else's too.
        address = None if os.environ.get("RAY_ADDRESS") else "local"
        tokens = logging.getLogger(TOKEN_LOGGER)
        tokens.addFilter(_is_no_talk_of_tokens)
        ray.init(address, include_dashboard=False, log_to_driver=True, logging_level="warning")
        tokens.removeFilter(_is_no_talk_of_tokens)
        _leave_out_talk()


def _is_no_talk_of_tokens(record: logging.LogRecord) -> bool:
    """That a cluster is safe is no warning; that it is not is one."""
    return "is enabled" not in record.getMessage()


def _leave_out_talk() -> None:
    """Show less of what processes of the cluster print. Their own logs hold all of it.

    Ray prints it from a thread of this process, past what `quiet_stderr` leaves out.
    """
    is_talk = re.compile(f"{talk_pattern()}|^({'|'.join(_TALK_OF_RAY)})").search
    filter_printed_lines(lambda line: not is_talk(line))


def connect_for(workers: WorkersConfig) -> None:
    """Connect when `workers.count` is not 0, and wait until the cluster can start a worker at all.

    Raises ClusterError when it cannot within `workers.start_timeout_s`: what a job asks of Ray later has no deadline.
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
    """Where tasks and actors are put: also when a trial of Ray Tune starts them, not into what that has reserved."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return PlacementGroupSchedulingStrategy(placement_group=None)


def run_where(workers: WorkersConfig, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call `function(*arguments)` where TensorFlow may be: here when `workers.count` is 0, else as one Ray task.

    The task has a worker's resources: the driver of a cluster job needs no GPU and never imports TensorFlow. Arguments
    and answer are pickled by Ray. TransferErrors come back as they were raised.
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
    """Errors of TensorFlow stay on the worker: the driver would have to load it to read them."""
    start_worker()
    with memory_explained("A task on the cluster"):
        return function(*arguments)


def _nothing() -> None:
    """What a worker does that only has to be there."""
