"""Nights in storage: which one is worked on, and when it is over."""

from pathlib import Path

import pytest

from tests.digits import digits_config
from transfer.errors import NightBusyError
from transfer.nights.night import _Work
from transfer.nights.records import Night, Standing, earlier_summaries, list_nights, work_on_night
from transfer.nights.summary import NightSummary
from transfer.storage import open_store


@pytest.fixture
def config(tmp_path):
    return digits_config(tmp_path / "images", str(tmp_path / "storage"))


def ended(night, outcome="kept"):
    summary = NightSummary(
        name=night.name, night=night.number, outcome=outcome, reason="so", started=night.started, ended=night.started
    )
    night.put_end(summary, "<html>")
    return summary


def test_a_night_that_is_cut_short_is_gone_on_with_and_one_that_is_over_is_not(config):
    store = open_store(config.storage)
    with work_on_night(store, config) as (night, _):
        assert (night.number, night.end(), night.page_uri()) == (1, None, None)
    with work_on_night(store, config) as (night, _):
        assert night.number == 1
        summary = ended(night)
    with work_on_night(store, config) as (night, _):
        assert night.number == 2
    latest, first = list_nights(store, config.name)
    assert (latest.number, first.number) == (2, 1)
    assert (first.end().outcome, first.summary()) == ("kept", summary)
    assert store.exists(first.page_uri().removeprefix(f"{store.uri}/"))


def test_what_fails_when_old_runs_are_removed_is_no_failure_of_the_night(config, monkeypatch, caplog):
    store = open_store(config.storage)
    monkeypatch.setattr(store, "list", lambda _: 1 / 0)
    work = _Work(config, store, Night(store, config.name, 1, "", ""), claim=None)
    work._remove_old_runs()
    assert "Older runs of nights stay: division by zero" in caplog.text


def test_a_night_of_another_configuration_is_left_behind_unless_somebody_works_on_it(config):
    store = open_store(config.storage)
    other = config.model_copy(update={"head": config.head.model_copy(update={"dropout": 0.4})})
    with work_on_night(store, config) as (night, _):
        assert night.number == 1
        with pytest.raises(NightBusyError, match="Night 1 of digits is being worked on"), work_on_night(store, other):
            pass
        assert next(list_nights(store, config.name)).standing().outcome == "at work"
    assert next(list_nights(store, config.name)).standing().outcome == "interrupted"
    with work_on_night(store, other) as (night, _):
        assert night.number == 2
        ended(night)
    last, first = list_nights(store, config.name)
    assert first.standing() == Standing("given up", "Cut short; night 2 began with another configuration.")
    assert last.standing() == Standing("kept", "so", last.end())
    with work_on_night(store, config) as (night, _):
        assert night.number == 3


def test_where_it_runs_is_not_part_of_a_night(config):
    store = open_store(config.storage)
    elsewhere = config.model_copy(update={"workers": config.workers.model_copy(update={"count": 2})})
    for each in (config, elsewhere):
        with work_on_night(store, each) as (night, _):
            assert night.number == 1


def test_earlier_nights_come_oldest_first_without_what_is_not_over_or_cannot_be_read(config, caplog):
    store = open_store(config.storage)
    for _ in range(4):
        with work_on_night(store, config) as (night, _):
            summary = ended(night)
            if night.number == 2:
                (found,) = Path(store.uri, night.folder, "summary").iterdir()
                found.write_bytes(b"{}")
    with work_on_night(store, config) as (night, _):
        earlier = earlier_summaries(store, config.name, before=night.number, count=3)
    assert [each.night for each in earlier] == [3, 4]
    assert earlier[-1] == summary
    assert "Night 2 will not be in the trend" in caplog.text
