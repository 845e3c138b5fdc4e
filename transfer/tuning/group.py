"""A trial that a group of Ray Train workers trains, seen from the process that drives it."""

from __future__ import annotations

import threading
import time

from transfer.dataset.manifest import Dataset
from transfer.errors import DivergedError, OutOfMemoryError
from transfer.training.history import EpochRow
from transfer.training.ray_workers import train_on_workers
from transfer.training.run import Run, open_run
from transfer.tuning.at_work import Failure, TrialState
from transfer.tuning.space import Trial
from transfer.tuning.sweep import Sweep

POLL_S = 0.5


class GroupTrial:
    """Trains a trial's run on `workers.count` workers, and tells how far it has come by its checkpoints."""

    def __init__(self, sweep: Sweep, dataset: Dataset, trial: Trial) -> None:
        sweep.check_bases(dataset)
        self._run: Run = open_run(sweep.store, trial.config, dataset)
        self._error: Exception | None = None
        # Ends with the process: whoever stops the trial ends that, and with it the workers that it owns.
        self._thread = threading.Thread(target=self._train, daemon=True)
        if not self._progress()[1]:
            self._thread.start()

    def advance(self, epochs: int) -> TrialState:
        """Wait until the trial has come so many epochs, or to its end. Raises what training raised."""
        while True:
            # Asked first: what a thread that has ended wrote is seen.
            works = self._thread.is_alive()
            rows, complete = self._progress()
            if complete or len(rows) >= epochs or not works:
                break
            time.sleep(POLL_S)
        if complete and self._thread.is_alive():
            # Until its workers have left, the next trial would wait for their CPUs.
            self._thread.join()
        failure = None
        if len(rows) < epochs and not complete:
            if not isinstance(self._error, DivergedError | OutOfMemoryError):
                raise self._error or RuntimeError(f"run {self._run.id} ended without a word")
            failure = Failure.of(self._error)
        return TrialState(run_id=self._run.id, rows=rows, complete=complete or failure is not None, failure=failure)

    def _train(self) -> None:
        try:
            train_on_workers(self._run)
        except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
            self._error = error

    def _progress(self) -> tuple[tuple[EpochRow, ...], bool]:
        found = self._run.checkpoints.latest()
        if found is None:
            return (), False
        progress = found[1]["progress"]
        return tuple(EpochRow.model_validate(row) for row in progress["history"]), progress["complete"]
