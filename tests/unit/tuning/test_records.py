"""Which trial of a sweep wins, and what stands of a trial after several attempts."""

import pytest

from tests.digits import digits_config
from tests.runs import failed
from tests.runs import trial as with_epochs
from transfer.tuning.records import Sweep, SweepRecords, TrialRecord, best_first, nothing_to_add, winner_of


def trial(number, value, *, flops=1.0, stopped_by=None, status=None):
    status = status or ("stopped" if stopped_by else "finished")
    content = {"number": number, "values": {}, "run_id": "", "depth": [0], "value": value}
    return TrialRecord(**content, status=status, stopped_by=stopped_by, trained_flops=flops)


def winner(*trials, metric="accuracy"):
    best = winner_of(trials, metric)
    return best.number if best else None


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 2), ("loss", 1)])
def test_the_best_value_of_the_metric_wins(metric, best):
    assert winner(trial(1, 0.5), trial(2, 0.9), trial(3, 0.7), metric=metric) == best


def test_of_equally_good_trials_the_one_that_trains_least_wins_then_one_that_finished_then_the_first():
    assert winner(trial(1, 0.9, flops=5.0), trial(2, 0.9, flops=2.0), trial(3, 0.8, flops=1.0)) == 2
    assert winner(trial(1, 0.9, stopped_by="target"), trial(2, 0.9)) == 2
    assert winner(trial(2, 0.9), trial(1, 0.9)) == 1


@pytest.mark.parametrize("ended_by", ["target", "max_epochs", "max_seconds"])
def test_a_trial_that_the_end_of_the_sweep_stopped_can_win(ended_by):
    assert winner(trial(1, 0.12), trial(2, 0.92, stopped_by=ended_by)) == 2


def test_a_trial_that_a_scheduler_stopped_wins_only_where_no_other_has_a_value():
    stopped = trial(1, 0.95, stopped_by="scheduler")
    assert winner(stopped, trial(2, 0.9)) == 2
    assert winner(stopped, trial(2, 0.9, stopped_by="max_seconds")) == 2
    assert winner(stopped, trial(2, None, status="failed")) == 1
    assert [each.number for each in best_first([stopped, trial(2, 0.9), trial(3, 0.8)], "accuracy")] == [2, 3, 1]


def test_a_sweep_can_be_repeated_until_its_target_its_epochs_or_all_of_its_trials_have_come_to_an_end():
    out_of_time, out_of_memory = trial(1, 0.9, stopped_by="max_seconds"), failed(2, failed_by="memory")
    ended = [trial(3, 0.5), trial(4, 0.4, stopped_by="scheduler"), failed(5, failed_by="loss"), failed(6)]
    assert nothing_to_add(ended, spent=None)
    for other in (out_of_time, out_of_memory):
        assert not nothing_to_add([*ended, other], spent=None)
        assert nothing_to_add([*ended, other], spent="target")
    assert not nothing_to_add(ended, spent="max_seconds")


def test_where_all_failed_nobody_wins():
    assert winner(trial(1, None, status="failed")) is None


@pytest.mark.parametrize(
    ("reason", "stopped_by"),
    [
        ("by median", "scheduler"),
        ("trial 2 reached the target, accuracy 0.9", "target"),
        ("the budget of 30 epochs is spent", "max_epochs"),
        ("the budget of 60 seconds is spent", "max_seconds"),
    ],
)
def test_records_that_did_not_name_who_stopped_a_trial_can_be_read(reason, stopped_by):
    document = with_epochs(1, status="stopped", stopped_by=stopped_by, reason=reason).model_dump(mode="json")
    del document["stopped_by"]
    assert TrialRecord.model_validate(document).stopped_by == stopped_by


def test_neither_a_budget_nor_a_failure_takes_back_what_an_earlier_attempt_recorded(tmp_path):
    records = SweepRecords(Sweep("digits-0", digits_config(tmp_path, str(tmp_path / "storage")), "digits", 1))
    short = {"epochs": 1, "status": "stopped", "stopped_by": "max_seconds"}
    longer = {"epochs": 2, "status": "stopped", "stopped_by": "scheduler"}
    for number, earlier in enumerate([with_epochs(1), with_epochs(2, **longer), with_epochs(3, **short)], start=1):
        records.note_start(number, earlier.values)
        assert records.note_end(earlier) == earlier
    assert records.note_end(with_epochs(1, **short)) == with_epochs(1)
    assert records.note_end(with_epochs(2, **short)) == with_epochs(2, **longer)
    assert records.note_end(with_epochs(3, **longer)) == with_epochs(3, **longer)
    # What went wrong around a trial is nothing of its own; a loss that is not finite is, and so is its next attempt.
    assert records.note_end(failed(3, epochs=2)) == with_epochs(3, **longer)
    assert records.note_end(failed(2, epochs=2, failed_by="memory")) == with_epochs(2, **longer)
    assert records.note_end(failed(2, epochs=3, failed_by="memory")) == with_epochs(2, **longer)
    assert records.note_end(failed(4, epochs=1, failed_by="memory")).value is None
    assert records.note_end(with_epochs(4, **short)) == with_epochs(4, **short)
    assert records.note_end(failed(4, epochs=1, failed_by="loss")).value is None
    # It was not trained any further, and others have come to know better.
    assert records.note_end(with_epochs(3, epochs=1, status="stopped", stopped_by="scheduler")).rows[1:] == ()
    assert records.ended(but=[3]) == {1: with_epochs(1), 2: with_epochs(2, **longer)}
