"""Two publishers, ingests, promotions and nights at the same moment: one wins, the other says who did."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.proof.amount import trials
from tests.proof.driver import remember_as_checked
from tests.proof.figures import kind_of, note
from tests.proof.racing import race
from tests.published import provenance_of
from tests.sourcing import config_of, write_classes
from transfer.catalog.model import ModelVersion
from transfer.config import Config, StorageConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import Dataset, dataset_log
from transfer.nights.records import list_nights, work_on_night
from transfer.registry.promote import promote
from transfer.registry.versions import list_promotions, list_versions, publish_once, published_version, upload_version
from transfer.storage import open_store

ANOTHER_WAS_FIRST, NIGHT_IS_BUSY = 14, 10


@pytest.fixture
def races():
    """Of each kind and on each kind of storage; together twice as many."""
    return trials(12, 500)


def one_winner(outcomes, *, error, exit_code):
    """The winner's number, if the other says that it lost."""
    (lost,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert (lost.error, lost.exit_code) == (error, exit_code)
    return next(racer for racer, outcome in enumerate(outcomes) if outcome is not lost), lost


def publish(store, number, racer):
    yield publish_files(store, f"model-{number}", run="the-run", content=b"graph %d" % racer)


def publish_files(store, model, *, run, content):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "saved_model.pb").write_bytes(content)
        version = upload_version(store, model, Path(folder), classes=["a", "b"], provenance=provenance_of(run))
    return publish_once(store, version, run=run).number


def test_of_two_publishers_of_a_run_one_wins_and_the_other_names_its_version(storage, races):
    store = open_store(storage)
    for number, outcomes in enumerate(race(publish, storage, races=races)):
        winner, lost = one_winner(outcomes, error="PublishConflictError", exit_code=ANOTHER_WAS_FIRST)
        (version,) = list_versions(store, f"model-{number}")
        assert version.number == outcomes[winner].answer
        assert f"as version {version.number}" in lost.message
        assert published_version(store, f"model-{number}", "the-run") == version
    note(f"two publishers, {kind_of(storage)}", races=races, failures=0)


def publish_runs(store, number, racer):
    yield publish_files(store, f"model-{number}", run=f"run-{racer}", content=b"graph %d" % racer)


def test_two_publishers_of_two_runs_make_two_versions(storage, races):
    store = open_store(storage)
    for number, outcomes in enumerate(race(publish_runs, storage, races=races)):
        runs = {version.number: version.provenance.run for version in list_versions(store, f"model-{number}")}
        assert runs == {outcome.answer: f"run-{racer}" for racer, outcome in enumerate(outcomes)}
    note(f"two publishers of two runs, {kind_of(storage)}", races=races, failures=0)


def promote_own(store, number, racer):
    version = ModelVersion(
        model=f"model-{number}",
        number=racer + 1,
        published_at="",
        files=(),
        classes=("a", "b"),
        provenance=provenance_of(),
    )
    yield promote(store, version, reason=f"racer {racer} found it better", after=0).version


def test_of_two_promotions_one_wins_and_the_other_says_who_did(storage, races):
    store = open_store(storage)
    for number, outcomes in enumerate(race(promote_own, storage, races=races)):
        winner, lost = one_winner(outcomes, error="PromotionConflictError", exit_code=ANOTHER_WAS_FIRST)
        assert f"racer {winner} found it better" in lost.message
        ((entry, promotion),) = list_promotions(store, f"model-{number}")
        assert (entry, promotion.version) == (1, outcomes[winner].answer) == (1, winner + 1)
    note(f"two promotions, {kind_of(storage)}", races=races, failures=0)


@dataclass(frozen=True)
class IngestOwn:
    """Ingests the same images into the same dataset, each racer with another share for validation."""

    config: Config

    def __call__(self, _store, number, racer):
        config, warnings = config_of_race(self.config, number, racer), []
        logging.getLogger("transfer.dataset.ingest").addHandler(handler := Listener(warnings))
        dataset = ingest(config, open_store(config.storage))
        logging.getLogger("transfer.dataset.ingest").removeHandler(handler)
        yield dataset, warnings


class Listener(logging.Handler):
    def __init__(self, heard):
        super().__init__(logging.WARNING)
        self.heard = heard

    def emit(self, record):
        self.heard.append(record.getMessage())


def config_of_race(config, number, racer=0):
    storage = config.storage.model_copy(update={"uri": f"{config.storage.uri}/{number}"})
    dataset = config.dataset.model_copy(update={"validation": (0.3, 0.6)[racer]})
    return config.model_copy(update={"storage": storage, "dataset": dataset})


def test_of_two_ingests_one_makes_a_version_and_the_other_says_so_and_makes_the_next(storage, tmp_path):
    races = trials(20, 900) if kind_of(storage) == "folder" else trials(4, 100)
    config = config_of(write_classes(tmp_path / "images", cat=6, dog=6), storage)
    for number in range(races):
        remember_as_checked(config_of_race(config, number))
    at_once = 0
    for number, outcomes in enumerate(race(IngestOwn(config), storage, races=races)):
        log = dataset_log(open_store(config_of_race(config, number).storage), "pets")
        datasets, said = zip(*(outcome.answer for outcome in outcomes), strict=True)
        # Of so few images a split may lack a class, and the second version draws its splits anew: both are said, too.
        warnings = [[line for line in lines if line.startswith("Another ingest ")] for lines in said]
        assert {dataset.number: dataset for dataset in datasets} == {n: log.read_as(Dataset, n) for n in log.numbers()}
        assert log.numbers() == [1, 2]
        # Unless one came so late that it planned on the other's version from the start.
        heard = next(warned for dataset, warned in zip(datasets, warnings, strict=True) if dataset.number == 2)
        at_once += heard == ["Another ingest added a version of pets meanwhile; planning again on it."]
        assert not next(warned for dataset, warned in zip(datasets, warnings, strict=True) if dataset.number == 1)
    assert at_once > 0
    note(f"two ingests, {kind_of(storage)}", races=races, at_the_same_commit=at_once, failures=0)


def begin_night(store, number, racer):
    config = config_of("/nowhere", StorageConfig(uri=store.uri)).model_copy(update={"name": f"night-{number}"})
    with work_on_night(store, config) as (night, claim):
        claim.check()
        yield night.number


def test_of_two_nights_one_is_worked_on_and_the_other_says_by_whom(storage, races):
    store = open_store(storage)
    for number, outcomes in enumerate(race(begin_night, storage, races=races)):
        winner, lost = one_winner(outcomes, error="NightBusyError", exit_code=NIGHT_IS_BUSY)
        assert outcomes[winner].answer == 1
        assert f"Night 1 of night-{number} is being worked on by process " in lost.message
        assert [night.number for night in list_nights(store, f"night-{number}")] == [1]
    note(f"two nights, {kind_of(storage)}", races=races, failures=0)
