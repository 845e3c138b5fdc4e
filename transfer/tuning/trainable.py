"""Ray Tune's side of a trial: it requests one epoch after the other from an actor. It needs no TensorFlow.

An actor (`trial_actor.py`) trains the epoch by `training/loop.py`, or by `training/pack.py` for all trials of a pack.

The epochs that an earlier attempt recorded are reported to Tune again without training. So schedulers and searches get
all their information back, and nothing is unpickled from storage.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from transfer.catalog.run import CheckpointEntry, EpochRow
from transfer.dataset.manifest import Dataset
from transfer.errors import DivergedError, OutOfMemoryError, TrainingError, TransferError
from transfer.training.checkpoints import keep_best_and_last
from transfer.training.distributed import train_on_workers
from transfer.training.history import final_row
from transfer.training.run import Run, open_run
from transfer.tuning.plan import pack_key
from transfer.tuning.records import Sweep, SweepRecords, TrialRecord
from transfer.tuning.search import METRIC, TIME
from transfer.tuning.space import Trial, make_trial, sweep_of
from transfer.tuning.trial_runner import Branch, Failure, TrialState

FAILED = -1e9
"""The metric of a failed trial: worse than any other, but finite, because searches need a number."""
POLL_S = 0.5
"""Seconds between two reads of a group's newest checkpoint."""
_CHECKPOINT = "trial.json"
_NOTHING = TrialState(run_id="", rows=(), ended=False)


class TuneTrial(tune.Trainable):
    """Trains one trial. Tune uses the same process for one trial after the other."""

    def setup(
        self,
        config: dict[str, Any],
        *,
        sweep: Sweep | None = None,
        actors: Sequence[Any] = (),
        trials: Mapping[int, Trial] | None = None,
        flops: Mapping[int, float] | None = None,
    ) -> None:
        """`trials`: by number, if all of them are known. Without actors each trial has its own group of workers."""
        if sweep is None:
            raise ValueError("TuneTrial needs the sweep it belongs to")
        self._sweep = sweep
        self._actors = actors
        self._trials = trials or {}
        self._flops = flops or {}
        self._records = SweepRecords(sweep)
        self._trial: Trial | None = None
        self._branch: Branch | None = None
        self._state = _NOTHING
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Tune's call to change to another trial."""
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Tune's call for the report of one more epoch."""
        self._epochs += 1
        if len(self._state.rows) < self._epochs and not self._state.ended:
            self._state = self._ask()
        state = self._state
        if state.failure is not None and self._epochs > len(state.rows):
            failure = {"failure": state.failure.reason, "failed_by": state.failure.by}
            return self._report({METRIC: FAILED, "done": True, **failure})
        ends = state.ended and state.failure is None and self._epochs >= len(state.rows)
        rows = state.rows[: self._epochs]
        # Over folds, the last row already belongs to the weights with which the folds ended.
        is_mean = sweep_of(self._sweep.config).folds > 0
        row = final_row(rows, self._of.config.phases) if ends and not is_mean else rows[-1]
        # After taking over another trial's weights, report the whole history: it replaces what this trial reported
        # before.
        reported = rows if ends or self._branch else rows[-1:]
        result = {METRIC: self._value(row), "rows": [each.model_dump() for each in reported]}
        # `ended` beside `done`, because Tune also sets `done` when it stops a trial.
        return self._report({**result, "done": ends, "ended": ends})

    def cleanup(self) -> None:
        """Leave the trial. If it has not ended, its actor stops it."""
        if self._actor and self._trial is not None and self._is_with_actor and not self._state.ended:
            ray.get(self._actor.stop.remote(self._trial, self._branch))
        self._trial = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the trial's progress for Tune. The weights are in the checkpoints of the trial's run."""
        stand = {
            "values": self._of.values,
            "run_id": self._state.run_id,
            "checkpoint": self._state.checkpoint,
            "epochs": self._epochs,
            "branch": self._branch and asdict(self._branch),
        }
        Path(checkpoint_dir, _CHECKPOINT).write_text(json.dumps(stand), encoding="utf-8")

    def load_checkpoint(self, checkpoint_dir: str | None) -> None:
        """Continue this trial from its own progress; if its values are new, from that of the trial it copies."""
        stand = json.loads(Path(checkpoint_dir or "", _CHECKPOINT).read_text(encoding="utf-8"))
        self._epochs = stand["epochs"]
        if stand["values"] != self._of.values:
            self._branch = Branch(stand["run_id"], stand["checkpoint"])
        elif stand["branch"]:
            self._branch = Branch(**stand["branch"])

    def _begin(self, config: dict[str, Any]) -> None:
        number = config["trial"]
        self._trial = self._trials.get(number) or make_trial(self._sweep.config, number, config["values"])
        # All trials of a pack have the same actor. Other trials are distributed by their numbers.
        key = pack_key(self._trial.config)
        place = int(key, 16) if key else number
        self._actor = self._actors[place % len(self._actors)] if self._actors else None
        self._group: GroupTrial | None = None
        self._branch = None
        self._is_with_actor = False
        self._epochs = 0
        self._state = _recorded(self._records.trial(number), self._trial)

    @property
    def _of(self) -> Trial:
        if self._trial is None:
            raise RuntimeError("there is no trial to report on")
        return self._trial

    def _ask(self) -> TrialState:
        """Let the trial be trained up to the epoch that this process has counted, or to its end."""
        self._is_with_actor = True
        if self._actor is None:
            self._group = self._group or GroupTrial(self._sweep, self._sweep.dataset, self._of)
            return self._group.advance(self._epochs)
        try:
            state: TrialState = ray.get(self._actor.advance.remote(self._of, self._epochs, self._branch))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TransferError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            self._await_actor()
            raise TrainingError(
                f"The process that trained trial {self._of.number} died.",
                advice="Usually the machine ran out of memory. Smaller batches need less.",
            ) from error
        return state

    def _await_actor(self) -> None:
        """Wait until Ray has restarted the actor, so that the next attempt can use it."""
        if self._actor is None:
            return
        deadline = time.monotonic() + self._sweep.config.workers.start_timeout_s
        while time.monotonic() < deadline:
            try:
                ray.get(self._actor.ready.remote())
            except ray.exceptions.RayActorError:
                time.sleep(0.2)
            else:
                return

    def _value(self, row: EpochRow) -> float:
        metric = sweep_of(self._sweep.config).metric
        found = row.validation_accuracy if metric == "accuracy" else row.validation_loss
        if found is None:
            raise RuntimeError("a trial of a sweep was not validated")
        return found if metric == "accuracy" else -found

    def _report(self, result: dict[str, Any]) -> dict[str, Any]:
        state = self._state
        flops = state.trained_flops or self._flops.get(self._of.number, 0.0)
        facts = {"run_id": state.run_id, "trained_flops": flops, "packed_with": state.packed_with}
        return {TIME: self._epochs, **facts, **result}


def _recorded(record: TrialRecord | None, trial: Trial) -> TrialState:
    """The state that an earlier attempt recorded of a trial. Empty for a trial that is to be trained further."""
    if record is None or record.values != trial.values or record.status == "stopped" or record.failed_by == "memory":
        return _NOTHING
    return TrialState(
        run_id=record.run_id,
        rows=record.rows,
        ended=True,
        trained_flops=record.trained_flops,
        packed_with=record.packed_with,
        failure=Failure(record.reason or "", record.failed_by) if record.status == "failed" else None,
    )


class GroupTrial:
    """Trains a trial's run on `workers.count` workers, and reads its progress from its checkpoints."""

    def __init__(self, sweep: Sweep, dataset: Dataset, trial: Trial) -> None:
        sweep.check_bases(dataset)
        self._run: Run = open_run(sweep.store, trial.config, dataset, started_by=sweep.folder)
        self._error: Exception | None = None
        # A daemon, because stopping the trial ends this process, and with it the thread and the workers that it owns.
        self._thread = threading.Thread(target=self._train, daemon=True)
        if not self._progress()[1]:
            self._thread.start()

    def advance(self, epochs: int) -> TrialState:
        """Wait until the trial has trained `epochs`, or has ended. Raises what training raised."""
        while True:
            # Checked before the progress, so that the last checkpoint of an ended thread is not missed.
            works = self._thread.is_alive()
            rows, complete = self._progress()
            if complete or len(rows) >= epochs or not works:
                break
            time.sleep(POLL_S)
        if complete and self._thread.is_alive():
            # The next trial needs the CPUs of the workers, which leave before the thread ends.
            self._thread.join()
        failure = None
        if len(rows) < epochs and not complete:
            if not isinstance(self._error, DivergedError | OutOfMemoryError):
                raise self._error or RuntimeError(f"run {self._run.id} ended without an error message")
            failure = Failure.of(self._error)
        return TrialState(run_id=self._run.id, rows=rows, ended=complete or failure is not None, failure=failure)

    def _train(self) -> None:
        try:
            train_on_workers(self._run)
            keep_best_and_last(self._run)
        except Exception as error:  # noqa: BLE001 - `advance` raises it
            self._error = error

    def _progress(self) -> tuple[tuple[EpochRow, ...], bool]:
        found = self._run.checkpoints.latest_as(CheckpointEntry)
        if found is None:
            return (), False
        progress = found[1].progress
        return progress.history, progress.complete
