"""Logs trials as runs of MLflow. Needs the extra `mlflow`."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time

from transfer.errors import ConfigError
from transfer.runtime.distribution import install_extra
from transfer.tuning.records import TrialRecord

logger = logging.getLogger(__name__)

_SETTINGS = {
    # By default each trial would wait for minutes if the server does not respond.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # MLflow would print a line for each run on stdout.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Nothing about the training is sent to others.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_MAX_METRICS = 1000


class MlflowTrials:
    """The trials of one sweep in an MLflow experiment, in which each ended trial is one run."""

    def __init__(self, tracking_uri: str, *, experiment: str, sweep: str) -> None:
        """`tracking_uri`: address of a server or a store. `experiment`: its name; it is made if it is missing.

        Raises ConfigError if MLflow is not installed, or cannot be used at this address.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigError(
                f"sweep.mlflow is `{tracking_uri}`, and MLflow is not installed.",
                advice=install_extra("mlflow"),
            )
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self._sweep = sweep
        try:
            self._client = MlflowClient(tracking_uri=tracking_uri)
            found = self._client.get_experiment_by_name(experiment)
            self._experiment = found.experiment_id if found else self._client.create_experiment(experiment)
            self._logged = self._logged_before()
        except MlflowException as error:
            raise ConfigError(
                f"sweep.mlflow is `{tracking_uri}`, and MLflow cannot be used at this address: {error}.",
                advice="Start the server, correct the address, or leave sweep.mlflow out.",
            ) from error

    def log(self, record: TrialRecord) -> None:
        """Make a run of MLflow for a trial that ended, unless there is one.

        An error of MLflow is logged, and the sweep continues. Repeating the sweep logs the trials that are missing.
        """
        if record.number in self._logged:
            return
        from mlflow.exceptions import MlflowException

        try:
            self._create_run(record)
        except MlflowException as error:
            logger.warning("Trial %d could not be logged to MLflow: %s", record.number, error)
        else:
            self._logged.add(record.number)

    def _logged_before(self) -> set[int]:
        """Numbers of the sweep's trials that have a run already. Deletes runs whose logging was interrupted."""
        numbers, token = set(), None
        while True:
            page = self._client.search_runs(
                [self._experiment], filter_string=f"tags.sweep = '{self._sweep}'", page_token=token
            )
            for run in page:
                if run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                else:
                    numbers.add(int(run.data.tags["trial"]))
            token = page.token
            if not token:
                return numbers

    def _create_run(self, record: TrialRecord) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        run = self._client.create_run(self._experiment, tags=self._tags(record), run_name=f"trial {record.number}")
        run_id = run.info.run_id
        params = [
            Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in record.values.items()
        ]
        metrics = [
            Metric(name, value, now, row.epoch)
            for row in record.rows
            for name, value in row.model_dump(exclude={"phase", "epoch"}, exclude_none=True).items()
        ]
        metrics.append(Metric("trial_seconds", record.seconds, now, 0))
        if record.value is not None:
            metrics.append(Metric("value", record.value, now, 0))
        self._client.log_batch(run_id, params=params)
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + _MAX_METRICS])
        # A run that is not terminated counts as interrupted.
        self._client.set_terminated(run_id, "FAILED" if record.status == "failed" else "FINISHED")

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        tags = {
            "sweep": self._sweep,
            "trial": str(record.number),
            "run": record.run_id,
            "status": record.status,
            "unfreeze": json.dumps(record.depth),
        }
        why = {"reason": record.reason, "stopped_by": record.stopped_by, "failed_by": record.failed_by}
        return tags | {name: text for name, text in why.items() if text}
