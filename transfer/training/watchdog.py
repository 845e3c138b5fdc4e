"""Callbacks of Ray's controller, for what Ray does not notice: workers that hold up others, groups that never start."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Any

import ray
import ray.exceptions

from transfer.errors import OutOfMemoryError, TrainingError
from transfer.runtime.ray_private.train import STARTING, ControllerCallback, WorkerGroupCallback
from transfer.training.heartbeat import heartbeat, holding_up

logger = logging.getLogger(__name__)

ANSWER_WITHIN_S = 5.0
LOOKS_A_TIMEOUT = 10
"""Number of times that the heartbeats are read within `workers.stall_timeout_s`."""
PAUSE_S = 0.2


class Watchdog(WorkerGroupCallback):
    """Ends workers that hold up their group. When a group fails, logs which workers do not respond.

    Ray itself ends a worker that does not respond to its health checks. If other workers wait for it in a step,
    TensorFlow notices that, and the step fails in them. Either way only the other workers report an error, so this
    class names the silent one. What Ray does not notice is stalled training in a process that responds: a collective
    that waits for ever, or a store that sends a byte a minute.
    """

    def __init__(self, run_id: str, *, stall_timeout_s: float) -> None:
        self._run_id = run_id
        self._stall_timeout_s = stall_timeout_s
        self._looked = 0.0
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray's controller each time a group has started."""
        self._group, self._looked = worker_group, time.monotonic()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called by Ray's controller every two seconds. If a worker has an error, Ray ends the group afterwards.

        Raises OutOfMemoryError if a worker did. Ray then ends the run: another group would need as much memory.
        """
        for error in worker_group_status.errors.values():
            if isinstance(error, OutOfMemoryError):
                raise error
        if worker_group_status.errors:
            for rank in self._ask()[1]:
                self._say(rank, "does not respond")
        elif time.monotonic() - self._looked > self._stall_timeout_s / LOOKS_A_TIMEOUT:
            self._looked = time.monotonic()
            self._end_who_holds_up()

    def _end_who_holds_up(self) -> None:
        heartbeats, silent = self._ask()
        if silent:
            return  # The others may be waiting for the silent ranks, whose state is not known.
        heartbeats = {rank: found for rank, found in heartbeats.items() if found is not None}
        for rank in holding_up(heartbeats, timeout_s=self._stall_timeout_s):
            self._say(rank, f"has been {heartbeats[rank].doing} for {heartbeats[rank].seconds:.0f} s")
            ray.kill(self._group.get_workers()[rank].actor)

    def _ask(self) -> tuple[dict[int, Any], list[int]]:
        """The heartbeats of the ranks that respond, and the ranks that do not. Dead ranks are in neither."""
        asked = {
            self._group.execute_single_async(rank, heartbeat): rank for rank in range(len(self._group.get_workers()))
        }
        ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_WITHIN_S)
        answers = {}
        for answer in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                answers[asked[answer]] = ray.get(answer)
        return dict(sorted(answers.items())), sorted(asked[answer] for answer in silent)

    def _say(self, rank: int, what: str) -> None:
        process = self._group.get_workers()[rank].metadata
        logger.warning(
            "Rank %d of run %s (process %d on %s) %s, and is ended. Training continues from the newest checkpoint, at "
            "most workers.max_failures times.",
            rank,
            self._run_id,
            process.pid,
            process.node_ip,
            what,
        )


class StartDeadline(ControllerCallback):
    """Fails a run whose group has been starting for `timeout_s`. Ray would try for ever."""

    def __init__(self, timeout_s: float, *, needs: str) -> None:
        self._timeout_s = timeout_s
        self._needs = needs
        self._starting_since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray's controller after each of its rounds. Raises TrainingError when the time is up."""
        if not isinstance(current_state, STARTING):
            self._starting_since = None
        elif self._starting_since is None:
            self._starting_since = time.monotonic()
        elif time.monotonic() - self._starting_since >= self._timeout_s:
            raise TrainingError(
                f"The workers did not start within workers.start_timeout_s, {self._timeout_s:g} s.", advice=self._needs
            )
        elif type(current_state) is type(previous_state):
            # Without a pause Ray's controller would poll with all the time of a core.
            time.sleep(PAUSE_S)
