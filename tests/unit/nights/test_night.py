"""Nights that end before anything is trained, by their command, and what is left of a gate's refusal."""

import re

import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.published import publish_some
from tests.shades import CLASSES, World
from transfer.config.reference import render
from transfer.nights.night import _other_settings, _Work, judged_digest
from transfer.nights.records import NightPlan, list_nights, work_on_night
from transfer.registry.describe import refusals_of
from transfer.registry.promote import promote
from transfer.storage import open_store, put_document
from transfer.training.run import open_run


@pytest.fixture
def config(tmp_path):
    return digits_config(tmp_path / "images", str(tmp_path / "storage"))


@pytest.fixture
def nightly(transfer, config, tmp_path):
    """Run a night."""
    file = tmp_path / "config.yaml"
    file.write_text(render(config))
    return lambda *arguments: transfer("nightly", file, *arguments)


def test_what_a_night_came_to_is_printed_once(nightly, config, tmp_path):
    _, dataset = ingest_some_digits(tmp_path)
    store = open_store(config.storage)
    publish_some(store, 2, promoted=[1], model="digits")
    put_document(store, f"nights/digits/judged/{judged_digest(config, dataset)}.json", {"night": 7})
    done = nightly()
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("Night 7 already judged this configuration on digits/00000001.") == 1
    assert said.count("Version 1 serves since") == 1
    (night,) = list_nights(store, "digits")
    assert night.page_uri() in done.stdout


def test_a_night_that_fails_before_it_has_a_plan_knows_what_serves(nightly, config, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/without-a-class.png").touch()
    store = open_store(config.storage)
    publish_some(store, 2, promoted=[2], model="digits")
    done = nightly()
    assert done.returncode == 4
    assert done.stderr.count("There are no images with a class") == 1
    (night,) = list_nights(store, "digits")
    assert (night.end().outcome, night.summary().champion) == ("failed", 2)
    assert night.page_uri() in done.stderr


def test_settings_that_the_champion_was_not_trained_with_are_found(config, tmp_path):
    _, dataset = ingest_some_digits(tmp_path)
    store = open_store(config.storage)
    head = config.head.model_copy(update={"dropout": 0.4})
    training = config.training.model_copy(update={"warm_start": "digits/1"})
    as_trained = config.model_copy(update={"head": head, "training": training})
    open_run(store, as_trained, dataset, run_id="run-0")
    champion, of_a_removed_run = publish_some(store, 2, model="digits")
    assert _other_settings(store, config, dataset, champion) == ("head.dropout",)
    assert _other_settings(store, as_trained, dataset, champion) == ()
    assert (
        _other_settings(store, config, dataset, of_a_removed_run) == _other_settings(store, config, dataset, None) == ()
    )


def test_a_night_begins_as_the_champion_only_where_that_saw_nothing_that_is_held_out(tmp_path, caplog):
    world = World(tmp_path, test=0.4, validation=0.2)
    champion = world.publish(CLASSES, [40.0, 220.0, 130.0]).number
    nightly = world.config.nightly.model_copy(update={"warm_start": "champion"})
    config = world.config.model_copy(update={"nightly": nightly})
    first, *others = world.dataset.shards
    assert first.split == "train"
    moved = world.dataset.model_copy(update={"shards": [first.model_copy(update={"split": "test"}), *others]})
    with work_on_night(world.store, config) as (night, claim):
        work = _Work(config, world.store, night, claim)
        assert work._begins_with(champion, world.dataset) == f"shades/{champion}"
        assert work._begins_with(None, world.dataset) is None
        assert not caplog.records
        assert work._begins_with(champion, moved) is None
    assert re.search(rf"holds out \([0-9]+ of {moved.rows('test')} in test\)", caplog.text)


def test_a_version_that_a_nights_gate_refuses_is_known_as_refused(tmp_path):
    world = World(tmp_path, test=0.4, validation=0.2)
    good = world.publish(CLASSES, [40.0, 220.0, 130.0])
    promote(world.store, good, reason="good")
    worse = world.publish(CLASSES, [220.0, 130.0, 40.0])
    plan = NightPlan(dataset=1, champion=good.number, promotion=1, warm_start=None, trains="0")
    with work_on_night(world.store, world.config) as (night, claim):
        outcome, reason = _Work(world.config, world.store, night, claim)._judged(plan, world.run, worse)
    (refusal,) = refusals_of(world.store, worse)
    assert (outcome, refusal.champion, refusal.evidence["night"]) == ("kept", good.number, night.number)
    assert refusal.text == f"Refused: {reason}"
