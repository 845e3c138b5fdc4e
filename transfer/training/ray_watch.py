"""What Ray's controller is to watch beyond what it does itself: workers that hang, and groups that cannot start."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    SchedulingState,
)

from transfer.errors import TrainingError

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0
PAUSE_S = 0.2
_STARTING = (InitializingState, SchedulingState, ReschedulingState, RestartingState)


class Watchdog(WorkerGroupCallback):
    """Says which workers had stopped answering when a group of them fails.

    A worker that hangs is ended by Ray itself, which asks each how it is; and where others wait for it in a step,
    TensorFlow notices the missing heartbeats and fails there. Either way only the others have something to say.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray's controller each time that a group has started."""
        self._group = worker_group

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called by Ray's controller every other second; when there are errors, it will end the group next."""
        if not worker_group_status.errors:
            return
        workers = self._group.get_workers()
        asked = {self._group.execute_single_async(rank, _answer): rank for rank in range(len(workers))}
        _, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN_S)
        for rank in sorted(asked[question] for question in silent):
            process = workers[rank].metadata
            logger.warning(
                "Rank %d of run %s (process %d on %s) does not answer any more, and is ended. Training goes on from "
                "the newest checkpoint, as often as workers.max_failures allows.",
                rank,
                self._run_id,
                process.pid,
                process.node_ip,
            )


class StartDeadline(ControllerCallback):
    """Fails a run whose group has been starting for so many seconds: Ray would try for ever."""

    def __init__(self, timeout_s: float, *, needs: str) -> None:
        self._timeout_s = timeout_s
        self._needs = needs
        self._starting_since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray's controller after each of its rounds. Raises TrainingError when the time is over."""
        if not isinstance(current_state, _STARTING):
            self._starting_since = None
        elif self._starting_since is None:
            self._starting_since = time.monotonic()
        elif time.monotonic() - self._starting_since >= self._timeout_s:
            raise TrainingError(f"Workers could not start in {self._timeout_s:g} s.", advice=self._needs)
        elif type(current_state) is type(previous_state):
            # Nothing has changed, and Ray would look again at once, with all that a core can do.
            time.sleep(PAUSE_S)


def _answer() -> None:
    """What a worker is asked that only has to answer."""
