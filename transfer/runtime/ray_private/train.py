"""Private parts of Ray Train: callbacks of its controller, and a trainer that leaves Ctrl-C to Python."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    RestartingState,
    SchedulingState,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = ["STARTING", "ControllerCallback", "InterruptibleTrainer", "WorkerGroupCallback"]

STARTING = (InitializingState, SchedulingState, ReschedulingState, RestartingState)
"""States of the controller while it starts the group of workers."""
ABORT_TIMEOUT_S = 10.0


class InterruptibleTrainer(DataParallelTrainer):
    """A trainer that leaves Ctrl-C to Python. Ray Train's handler would end this process with exit code 0."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """End the workers."""
        if self._controller is not None:
            with suppress(ray.exceptions.RayError):
                ray.get(self._controller.abort.remote(), timeout=ABORT_TIMEOUT_S)
