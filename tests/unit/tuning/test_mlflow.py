"""Trials in MLflow. Its store of files is the real one; a server would answer the same calls."""

import importlib.util
import logging

import pytest

from tests.runs import failed, trial
from transfer.errors import ConfigError
from transfer.tuning.mlflow import MlflowTrials


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def opened(uri, sweep="digits-1"):
    return MlflowTrials(uri, experiment="digits", sweep=sweep)


def client_of(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri):
    client = client_of(uri)
    return client.search_runs([client.get_experiment_by_name("digits").experiment_id])


def test_a_trial_becomes_a_run_with_its_values_epochs_and_tags(uri):
    record = trial(
        3, {"phases.0.learning_rate": 1e-4, "head.hidden": [64], "phases.0.optimizer.name": "sgd"}, value=0.9
    )
    opened(uri).log(record)
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "phases.0.learning_rate": "0.0001",
        "head.hidden": "[64]",
        "phases.0.optimizer.name": "sgd",
    }
    assert run.data.metrics["value"] == 0.9
    assert (run.data.tags["sweep"], run.data.tags["run"], run.data.tags["status"]) == (
        "digits-1",
        record.run_id,
        "finished",
    )
    history = client_of(uri).get_metric_history(run.info.run_id, "validation_loss")
    assert [(each.step, each.value) for each in history] == [(row.epoch, row.validation_loss) for row in record.rows]


def test_a_failed_trial_says_why(uri):
    opened(uri).log(failed(1, reason="out of memory"))
    (run,) = runs_of(uri)
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "out of memory"
    assert "value" not in run.data.metrics


def test_more_epochs_than_one_call_takes_are_all_logged(uri):
    opened(uri).log(trial(1, epochs=300))
    (run,) = runs_of(uri)
    assert len(client_of(uri).get_metric_history(run.info.run_id, "loss")) == 300


def test_a_repeat_of_the_sweep_adds_only_what_is_missing(uri):
    first = opened(uri)
    first.log(trial(1))
    first.log(trial(1))
    again = opened(uri)
    again.log(trial(1))
    again.log(trial(2))
    assert sorted(run.data.tags["trial"] for run in runs_of(uri)) == ["1", "2"]
    opened(uri, sweep="digits-2").log(trial(1))
    assert len(runs_of(uri)) == 3


def test_a_run_that_was_cut_off_is_made_again(uri):
    opened(uri)
    client = client_of(uri)
    experiment = client.get_experiment_by_name("digits").experiment_id
    client.create_run(experiment, tags={"sweep": "digits-1", "trial": "1"})
    opened(uri).log(trial(1))
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED"


def test_without_mlflow_the_extra_is_named(uri, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"transfer-on-ray\[mlflow\]"):
        opened(uri)


def test_a_server_that_does_not_answer_is_an_error_at_the_start(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:9"):
        opened("http://127.0.0.1:9")


def test_a_store_that_fails_later_ends_nothing(uri, tmp_path, caplog):
    trials = opened(uri)
    with caplog.at_level(logging.WARNING):
        trials.log(trial(1, {"not/../allowed\n": 1}))
    assert "Trial 1 could not be logged to MLflow" in caplog.text
