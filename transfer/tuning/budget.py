"""When a whole sweep ends before its last trial does."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Stopper

from transfer.config import SweepConfig
from transfer.tuning.records import BudgetKey


class Budget(Stopper):
    """Ends a sweep when its target is reached or its epochs or seconds are spent.

    `spent` then names the key, and `reason` says it in words.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self.spent: BudgetKey | None = None
        self.reason = ""
        self._sweep = sweep
        self._started = time.monotonic()
        # An epoch that is reported again, by a trial that was resumed or retried, is counted once.
        self._epochs: set[tuple[int, int]] = set()

    def __call__(self, _trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial that reports is to stop: with all others, or not at all."""
        sweep, trial = self._sweep, result["config"]["trial"]
        self._epochs.add((trial, result["epochs"]))
        if sweep.target is not None and _reached(sweep, result["value"]):
            self._end("target", f"trial {trial} reached the target, {sweep.metric} {sweep.target:g}")
        if sweep.max_epochs is not None and len(self._epochs) >= sweep.max_epochs:
            self._end("max_epochs", f"the budget of {sweep.max_epochs} epochs is spent")
        return self.stop_all()

    def stop_all(self) -> bool:
        """Whether every trial is to stop."""
        limit = self._sweep.max_seconds
        if limit is not None and time.monotonic() - self._started >= limit:
            self._end("max_seconds", f"the budget of {limit:g} seconds is spent")
        return self.spent is not None

    def _end(self, key: BudgetKey, reason: str) -> None:
        if self.spent is None:
            self.spent, self.reason = key, reason


def _reached(sweep: SweepConfig, value: float) -> bool:
    return value >= (sweep.target or 0.0) if sweep.metric == "accuracy" else -value <= (sweep.target or 0.0)
