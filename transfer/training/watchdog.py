"""What Ray's controller watches beyond what it does itself: workers that hold up others, groups that never start."""

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
"""How often the workers are asked what they are at, within the time in which they may stand still."""
PAUSE_S = 0.2


class Watchdog(WorkerGroupCallback):
    """Ends workers that hold up their group, and says which workers had stopped answering when a group fails.

    A worker that does not answer is ended by Ray itself, which asks each how it is; and where others wait for it in a
    step, TensorFlow notices the missing heartbeats and fails there. Either way only the others have something to say.
    What Ray does not see is training that stands still in a process that answers: a collective that waits for ever, a
    store that sends a byte a minute.
    """

    def __init__(self, run_id: str, *, stall_timeout_s: float) -> None:
        self._run_id = run_id
        self._stall_timeout_s = stall_timeout_s
        self._looked = 0.0
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by Ray's controller each time that a group has started."""
        self._group, self._looked = worker_group, time.monotonic()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Called by Ray's controller every other second; when there are errors, it will end the group next.

        Raises OutOfMemoryError where a worker did: Ray then ends the run, for another group would need as much.
        """
        for error in worker_group_status.errors.values():
            if isinstance(error, OutOfMemoryError):
                raise error
        if worker_group_status.errors:
            for rank in self._ask()[1]:
                self._say(rank, "does not answer any more")
        elif time.monotonic() - self._looked > self._stall_timeout_s / LOOKS_A_TIMEOUT:
            self._looked = time.monotonic()
            self._end_who_holds_up()

    def _end_who_holds_up(self) -> None:
        heartbeats, silent = self._ask()
        if silent:
            return  # What they are at is not known, and the others may be waiting for them.
        heartbeats = {rank: found for rank, found in heartbeats.items() if found is not None}
        for rank in holding_up(heartbeats, timeout_s=self._stall_timeout_s):
            self._say(rank, f"has been {heartbeats[rank].doing} for {heartbeats[rank].seconds:.0f} s")
            ray.kill(self._group.get_workers()[rank].actor)

    def _ask(self) -> tuple[dict[int, Any], list[int]]:
        """What the ranks are at, of those that answer, and which do not. One that died has nothing to say."""
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
            "Rank %d of run %s (process %d on %s) %s, and is ended. Training goes on from the newest checkpoint, as "
            "often as workers.max_failures allows.",
            rank,
            self._run_id,
            process.pid,
            process.node_ip,
            what,
        )


class StartDeadline(ControllerCallback):
    """Fails a run whose group has been starting for so many seconds: Ray would try for ever."""

    def __init__(self, timeout_s: float, *, needs: str) -> None:
        self._timeout_s = timeout_s
        self._needs = needs
        self._starting_since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Called by Ray's controller after each of its rounds. Raises TrainingError when the time is over."""
        if not isinstance(current_state, STARTING):
            self._starting_since = None
        elif self._starting_since is None:
            self._starting_since = time.monotonic()
        elif time.monotonic() - self._starting_since >= self._timeout_s:
            raise TrainingError(f"Workers could not start in {self._timeout_s:g} s.", advice=self._needs)
        elif type(current_state) is type(previous_state):
            # Nothing has changed, and Ray would look again at once, with all that a core can do.
            time.sleep(PAUSE_S)
