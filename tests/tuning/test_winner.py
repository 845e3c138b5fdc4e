"""Which trial of a sweep wins."""

import pytest

from transfer.tuning.notes import winner_of
from transfer.tuning.records import TrialRecord


def trial(number, value, *, flops=1.0, status="finished"):
    return TrialRecord(number=number, values={}, run_id="", status=status, value=value, depth=[0], trained_flops=flops)


@pytest.mark.parametrize(("metric", "winner"), [("accuracy", 2), ("loss", 1)])
def test_the_best_value_of_the_metric_wins(metric, winner):
    assert winner_of((trial(1, 0.5), trial(2, 0.9), trial(3, 0.7)), metric) == winner


def test_of_equally_good_trials_the_one_that_trains_least_wins_then_the_first():
    assert winner_of((trial(1, 0.9, flops=5.0), trial(2, 0.9, flops=2.0), trial(3, 0.8, flops=1.0)), "accuracy") == 2
    assert winner_of((trial(1, 0.9), trial(2, 0.9)), "accuracy") == 1


def test_a_trial_that_was_stopped_wins_only_where_none_finished():
    stopped = trial(1, 0.95, status="stopped")
    assert winner_of((stopped, trial(2, 0.9)), "accuracy") == 2
    assert winner_of((stopped, trial(2, None, status="failed")), "accuracy") == 1


def test_where_all_failed_nobody_wins():
    assert winner_of((trial(1, None, status="failed"),), "accuracy") is None
