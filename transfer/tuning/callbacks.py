"""The driver's callback on Ray Tune, which records trials in storage, on the terminal and in MLflow."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import tune
from ray.tune.experiment import Trial as TuneExperimentTrial

from transfer.catalog.run import EpochRow
from transfer.tuning.live_table import TrialTable
from transfer.tuning.mlflow import MlflowTrials
from transfer.tuning.records import (
    FailedBy,
    Status,
    Sweep,
    SweepRecords,
    SweepResult,
    TrialRecord,
    nothing_to_add,
    winner_of,
)
from transfer.tuning.search import METRIC, Budget
from transfer.tuning.space import Trial, make_trial, sweep_of

logger = logging.getLogger(__name__)


class Notes(tune.Callback):
    """Is told by Tune of every trial. Used as a context manager around the sweep."""

    def __init__(self, sweep: Sweep, records: SweepRecords, budget: Budget, trials: Mapping[int, Trial]) -> None:
        self._sweep = sweep
        self._settings = sweep_of(sweep.config)
        self._records = records
        self._budget = budget
        self._trials = dict(trials)
        self._rows: dict[int, list[EpochRow]] = {}
        self._ended: dict[int, TrialRecord] = {}
        self._table = TrialTable(self._settings.metric, total=self._settings.trial_count)
        self._mlflow = (
            MlflowTrials(self._settings.mlflow, experiment=sweep.config.name, sweep=sweep.id)
            if self._settings.mlflow
            else None
        )

    def __enter__(self) -> Self:
        self._table.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.__exit__(kind, error, trace)
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"with {len(self._ended)} of {self._settings.trial_count} trials ended")

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks to resume an experiment, and a sweep is never resumed that way."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """Tune's call when a trial begins, or continues after a failure."""
        found = self._trial(trial.config)
        self._rows[found.number] = self._rows.get(found.number, [])
        self._records.note_start(found.number, found.values)
        self._table.started(found.number, found.values)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - the signature is Tune's
        trials: list[Any],  # noqa: ARG002
        trial: TuneExperimentTrial,  # noqa: ARG002
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """Tune's call when a trial has finished an epoch."""
        if "rows" not in result:
            return
        rows = [EpochRow.model_validate(row) for row in result["rows"]]
        found = self._trial(result["config"])
        # After a failure a trial reports epochs a second time.
        self._rows[found.number] = [*self._rows[found.number][: rows[0].epoch], *rows]
        self._table.epoch(found.number, rows[-1], self._value(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """Tune's call when a trial has ended or was stopped."""
        result = trial.last_result or {}
        if result.get("failure"):
            self._end(trial, status="failed", reason=result["failure"], failed_by=result["failed_by"])
        elif result.get("ended"):
            self._end(trial, status="finished")
        else:
            self._end(trial, status="stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """Tune's call when a trial has failed `sweep.max_failures` times and once more."""
        self._end(trial, status="failed", reason=_reason(trial))

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """Tune's call at the end. For trials that a spent budget stopped while they ran, there is no other call."""
        for trial in trials if self._budget.spent else ():
            number = trial.config["trial"]
            if number in self._rows and number not in self._ended:
                self._end(trial, status="stopped")

    def result(self, *, seconds: float) -> SweepResult:
        """The result of the sweep. Trials that did not run in this attempt count as earlier attempts recorded them."""
        settings = self._settings
        records = {**self._records.ended(but=self._ended.keys()), **self._ended}
        trials = tuple(records[number] for number in sorted(records))
        winner = winner_of(trials, settings.metric)
        dataset = self._sweep.dataset
        return SweepResult(
            id=self._sweep.id,
            name=self._sweep.config.name,
            dataset=dataset.reference,
            metric=settings.metric,
            search=settings.search,
            scheduler=settings.scheduler.kind,
            folds=settings.folds,
            images=dataset.rows("validation") + (dataset.rows("train") if settings.folds else 0),
            trials=trials,
            winner=winner.number if winner else None,
            ended_by=self._budget.reason or "every trial ended",
            is_final=nothing_to_add(trials, spent=self._budget.spent),
            seconds=seconds,
        )

    def _end(
        self,
        trial: TuneExperimentTrial,
        *,
        status: Status,
        reason: str | None = None,
        failed_by: FailedBy | None = None,
    ) -> None:
        result = trial.last_result or {}
        # The values of the last report: a population may have set new ones since, with which no epoch was trained.
        found = self._trial(result.get("config", trial.config))
        failed = status == "failed" or METRIC not in result
        stopped_by = (self._budget.spent or "scheduler") if status == "stopped" else None
        if stopped_by:
            reason = self._budget.reason or f"by {self._settings.scheduler.kind}"
        record = TrialRecord(
            number=found.number,
            values=found.values,
            run_id=result.get("run_id", ""),
            status=status,
            reason=reason,
            stopped_by=stopped_by,
            failed_by=failed_by,
            rows=tuple(self._rows.get(found.number, ())),
            value=None if failed else self._value(result),
            depth=[phase.unfreeze for phase in found.config.phases],
            trained_flops=result.get("trained_flops", 0.0),
            packed_with=result.get("packed_with", 1),
        )
        record = self._records.note_end(record)
        if status == "failed" and record.status != "failed":
            logger.warning(
                "Trial %d failed. Its result is the one that an earlier attempt recorded. %s", found.number, reason
            )
        self._ended[found.number] = record
        self._table.ended(record)
        if self._mlflow:
            self._mlflow.log(record)

    def _trial(self, params: Mapping[str, Any]) -> Trial:
        number = params["trial"]
        values = params.get("values")
        if values is not None and (number not in self._trials or self._trials[number].values != values):
            self._trials[number] = make_trial(self._sweep.config, number, values)
        return self._trials[number]

    def _value(self, result: Mapping[str, Any]) -> float:
        return float(result[METRIC]) if self._settings.metric == "accuracy" else -float(result[METRIC])


def _reason(trial: TuneExperimentTrial) -> str:
    """The message of the error with which a trial failed."""
    path = trial.error_file
    text = Path(path).read_text(encoding="utf-8") if path else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The last line of a traceback is the class of the error and its message.
    return re.sub(r"^transfer\.errors\.\w+: ", "", lines[-1]) if lines else "its process ended without an error message"
