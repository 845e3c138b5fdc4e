"""Who is asked for the next trial, and when a sweep ends. Experiments of Tune are in tests/proof/on_ray."""

import sys

import pytest

from transfer.config import parse_config
from transfer.errors import ConfigError
from transfer.tuning import search

MINIMAL = {"name": "n", "dataset": {"source": "digits"}, "base": {"model": "MobileNetV2"}}
RATE = {"phases.0.learning_rate": {"log_uniform": [1e-5, 1e-1]}}
EPOCHS = 8


def config_of(space=RATE, *, storage="s3://b/p", **options):
    return parse_config(
        {**MINIMAL, "storage": storage, "phases": [{"epochs": EPOCHS}], "sweep": {"space": space, **options}}
    )


def suggestions(config, earlier=(), *, count):
    found = search.searcher(config, earlier)
    answers = []
    for index in range(count):
        answers.append(found.suggest(f"id{index}"))
        found.on_trial_complete(f"id{index}", {search.METRIC: -answers[-1]["values"]["phases.0.learning_rate"]})
    return answers


def test_optuna_suggests_the_same_for_the_same_seed():
    config = config_of(search="optuna")
    first = suggestions(config, count=14)
    assert [answer["trial"] for answer in first] == list(range(1, 15))
    assert len({answer["values"]["phases.0.learning_rate"] for answer in first}) == 14
    assert suggestions(config, count=14) == first
    assert suggestions(config_of(search="optuna", seed=1), count=14) != first


def test_optuna_begins_with_the_values_of_an_earlier_attempt():
    space = {**RATE, "phases.0.optimizer": ["adam", "sgd"], "training.seed": {"integers": [0, 9]}}
    earlier = [{"phases.0.learning_rate": 0.0123, "phases.0.optimizer": "sgd", "training.seed": 9}]
    answers = suggestions(config_of(space, search="optuna"), earlier, count=2)
    assert answers[0] == {"trial": 1, "values": earlier[0]}
    assert answers[1]["values"] != earlier[0]


def test_optuna_draws_from_where_results_were_good():
    tried = [answer["values"]["phases.0.learning_rate"] for answer in suggestions(config_of(search="optuna"), count=40)]
    assert sorted(tried[-15:])[7] < sorted(tried[:10])[5] / 5


def test_optuna_tries_every_combination_before_it_would_repeat_one():
    space = {
        "phases.0.learning_rate": [1e-4, "1e-3"],
        "head.hidden": [[8], [8, 8]],
        "training.seed": {"integers": [1, 3]},
    }
    answers = suggestions(config_of(space, search="optuna"), count=12)
    assert len({repr(answer["values"]) for answer in answers}) == 12
    assert {answer["values"]["phases.0.learning_rate"] for answer in answers} == {1e-4, 1e-3}


def test_searches_that_know_their_trials_need_no_searcher():
    assert search.searcher(config_of()) is None
    assert search.param_space(config_of(trials=3)) == {"trial": {"grid_search": [1, 2, 3]}}


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'transfer-on-ray\[optuna\]'"):
        search.searcher(config_of(search="optuna"))


def result(trial, epoch, value=0.0):
    return {"config": {"trial": trial}, search.TIME: epoch, search.METRIC: value}


def test_an_epoch_that_is_reported_again_is_counted_once():
    stopper = search.stopper(config_of(max_epochs=3))
    assert not any(stopper("id", result(trial, epoch)) for trial, epoch in [(1, 1), (1, 2), (1, 1), (1, 2)])
    assert stopper("id", result(2, 1))
    assert stopper.stop_all()


def test_a_budget_of_seconds_ends_the_sweep_without_a_result():
    stopper = search.stopper(config_of(max_seconds=1e-6))
    assert stopper.stop_all()
    assert stopper.reason == "the budget of 1e-06 seconds is spent"
    assert not search.stopper(config_of(max_seconds=1e6)).stop_all()


@pytest.mark.parametrize(("metric", "reached", "missed"), [("accuracy", 0.9, 0.89), ("loss", -0.9, -0.91)])
def test_a_target_ends_the_sweep_once_a_trial_is_as_good(metric, reached, missed):
    stopper = search.stopper(config_of(metric=metric, target=0.9))
    assert not stopper("id", result(4, 1, missed))
    assert stopper("id", result(7, 1, reached))
    assert stopper.reason == f"trial 7 reached the target, {metric} 0.9"
