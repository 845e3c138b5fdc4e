"""What the driver notes of trials while Ray Tune runs them: for storage, for the terminal, for MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ray import tune
from ray.tune.experiment import Trial as TuneExperimentTrial

from transfer.training.history import EpochRow
from transfer.tuning.budget import Budget
from transfer.tuning.mlflow import MlflowTrials
from transfer.tuning.records import SweepResult, TrialRecord
from transfer.tuning.search import METRIC
from transfer.tuning.space import Trial, make_trial, sweep_of
from transfer.tuning.sweep import Sweep, SweepRecords
from transfer.tuning.table import TrialTable


class Notes(tune.Callback):
    """Hears of every trial. Used as a context manager around the sweep."""

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

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to go on from, which is never done."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """A trial begins, or goes on after a failure."""
        found = self._trial(trial)
        self._rows[found.number] = self._rows.get(found.number, [])
        self._records.note_start(found.number, found.values)
        self._table.started(found.number, found.values)

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - the signature is Tune's
        trials: list[Any],  # noqa: ARG002
        trial: TuneExperimentTrial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        """A trial has finished one more epoch."""
        if "rows" not in result:
            return
        rows = [EpochRow.model_validate(row) for row in result["rows"]]
        found = self._trial(trial)
        # A trial that failed once reports epochs again.
        self._rows[found.number] = [*self._rows[found.number][: rows[0].epoch], *rows]
        self._table.epoch(found.number, rows[-1], self._value(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """A trial has ended, or was stopped."""
        result = trial.last_result or {}
        if result.get("failure"):
            self._end(trial, status="failed", reason=result["failure"])
        elif result.get("ended"):
            self._end(trial, status="finished")
        else:
            self._end(trial, status="stopped", reason=self._budget.reason or f"by {self._settings.scheduler.kind}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: TuneExperimentTrial, **_: Any) -> None:  # noqa: ARG002 - the signature is Tune's
        """A trial has failed as often as it may."""
        self._end(trial, status="failed", reason=_reason(trial))

    def result(self, *, seconds: float) -> SweepResult:
        """The sweep as it ended."""
        settings = self._settings
        trials = tuple(self._ended[number] for number in sorted(self._ended))
        return SweepResult(
            id=self._sweep.id,
            name=self._sweep.config.name,
            dataset=self._sweep.dataset.reference,
            metric=settings.metric,
            search=settings.search,
            scheduler=settings.scheduler.kind,
            folds=settings.folds,
            trials=trials,
            winner=winner_of(trials, settings.metric),
            ended_by=self._budget.reason or "every trial ended",
            is_final=not self._budget.is_out_of_time,
            seconds=seconds,
        )

    def _end(self, trial: TuneExperimentTrial, *, status: Any, reason: str | None = None) -> None:
        found, result = self._trial(trial), trial.last_result or {}
        failed = status == "failed" or METRIC not in result
        record = TrialRecord(
            number=found.number,
            values=found.values,
            run_id=result.get("run_id", ""),
            status=status,
            reason=reason,
            rows=tuple(self._rows.get(found.number, ())),
            value=None if failed else self._value(result),
            depth=[phase.unfreeze for phase in found.config.phases],
            trained_flops=result.get("trained_flops", 0.0),
            packed_with=result.get("packed_with", 1),
        )
        self._ended[found.number] = record
        self._records.note_end(record)
        self._table.ended(record)
        if self._mlflow:
            self._mlflow.log(record)

    def _trial(self, trial: TuneExperimentTrial) -> Trial:
        number = trial.config["trial"]
        values = trial.config.get("values")
        if values is not None and (number not in self._trials or self._trials[number].values != values):
            self._trials[number] = make_trial(self._sweep.config, number, values)
        return self._trials[number]

    def _value(self, result: Mapping[str, Any]) -> float:
        return float(result[METRIC]) if self._settings.metric == "accuracy" else -float(result[METRIC])


def winner_of(trials: tuple[TrialRecord, ...], metric: str) -> int | None:
    """Number of the best trial; of equally good ones, that which trains least, then the first.

    Trials that were stopped count only where none finished.
    """
    judged = [trial for trial in trials if trial.value is not None]
    judged = [trial for trial in judged if trial.status == "finished"] or judged
    sign = -1.0 if metric == "accuracy" else 1.0
    best = min(judged, key=lambda trial: (sign * (trial.value or 0.0), trial.trained_flops, trial.number), default=None)
    return best.number if best else None


def _reason(trial: TuneExperimentTrial) -> str:
    """Why a trial failed, in its error's own words."""
    path = trial.error_file
    text = Path(path).read_text(encoding="utf-8") if path else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A traceback ends with the error, behind the name of its class.
    return re.sub(r"^transfer\.errors\.\w+: ", "", lines[-1]) if lines else "its process ended without a word"
