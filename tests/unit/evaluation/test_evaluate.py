"""Evaluation in units, and the fast ways to what a trained model answers: they agree with the exported graph."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.digits import digits_config, ingest_digits_in_shards
from tests.reports import load_report
from transfer.backbone.random_start import base_for
from transfer.catalog.run import ReportEntry
from transfer.config import BaselinesConfig
from transfer.dataset.batches import stored_images
from transfer.dataset.index import ImageIndex
from transfer.ensure import fit
from transfer.errors import CorruptObjectError
from transfer.evaluation import evaluate, sampled, units
from transfer.evaluation.against import Reported, ServingAnswers
from transfer.evaluation.baselines import Baseline
from transfer.evaluation.evaluate import evaluate_run
from transfer.evaluation.metrics import Tally
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.run_answers import RunAnswers
from transfer.evaluation.sampled import sample_of
from transfer.evaluation.stored import StoredReport
from transfer.evaluation.units import INDEXED, UnitImages, units_of
from transfer.evaluation.work import EvaluationWork
from transfer.features import extract
from transfer.features.frozen import frozen_part_of
from transfer.features.layout import Request
from transfer.probes.neighbours import nearest_neighbours
from transfer.probes.ridge import fit_ridge
from transfer.storage import open_store, sha256_hex
from transfer.storage.local import LocalStore
from transfer.training.feature_plan import requests_of
from transfer.training.run import open_run

HEAD_ONLY = [{"unfreeze": 0, "epochs": 2, "learning_rate": 3e-3}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs by name, and their dataset, which has several shards a split."""
    config, dataset = ingest_digits_in_shards(tmp_path_factory.mktemp("digits"))
    configs = {
        "head only": {"phases": HEAD_ONLY},
        "head only, nothing kept": {"phases": HEAD_ONLY, "features": "never"},
        "a block, too": {},
    }
    runs = {}
    for name, changes in configs.items():
        changed = digits_config(config.dataset.source, config.storage.uri, dataset=config.dataset, **changes)
        runs[name] = open_run(open_store(config.storage), changed, dataset)
        fit(runs[name], dataset)
    return runs, dataset


@pytest.fixture(scope="module")
def trained(runs):
    """How to have finished runs answer, by name: probabilities, and whether cached features were enough."""
    runs, dataset = runs

    def answers(name, *, exactly=False):
        run = runs[name]
        asked = RunAnswers(run, dataset, exactly=exactly)
        (unit,) = units_of(dataset.shards_of("test"))
        found = asked.by_features(unit.shards)
        if found is not None:
            return found, True
        index = ImageIndex(run.store, dataset, INDEXED)
        return asked.by_network(UnitImages(run.store, index, unit, whole=True)), False

    return answers


@pytest.fixture
def shards_read(monkeypatch):
    """Names of the shards that are read, as often as they are: wholly, or a row group."""
    read, opened = [], LocalStore.open_verified

    def open_verified(store, name, *digest, **part):
        if name.startswith("shards/"):
            read.append((name, "part" if part else "whole"))
        return opened(store, name, *digest, **part)

    monkeypatch.setattr(LocalStore, "open_verified", open_verified)
    return read


@pytest.mark.parametrize("name", ["a block, too", "head only"])
def test_each_shard_is_read_once_and_its_predictions_are_stored_as_a_part(runs, shards_read, monkeypatch, name):
    run, dataset = runs[0][name], runs[1]
    shards = dataset.shards_of("test")
    report, predictions = load_report(run, evaluate_run(run, dataset))
    shards_read.clear()
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)
    number = evaluate_run(run, dataset)
    whole = [shard for shard, how in shards_read if how == "whole"]
    # Cached features stand for the images, and then only those of the worst mistakes are read.
    assert whole == ([shard.name for shard in shards] if name == "a block, too" else [])
    assert len(shards) > 1

    in_parts, of_parts = load_report(run, number)
    assert in_parts == report
    entry = run.reports.read_as(ReportEntry, number)
    assert entry.part_rows == tuple(shard.rows for shard in shards)
    assert [name for name in sorted(entry.files) if "predictions" in name] == [
        f"predictions/part-{part:05d}.parquet" for part in range(len(shards))
    ]
    assert of_parts.keys == predictions.keys
    np.testing.assert_allclose(of_parts.probabilities, predictions.probabilities, atol=1e-6)
    stored, first = StoredReport(run, number), shards[0].rows
    assert stored.predictions(first - 2, first + 3).keys == predictions.keys[first - 2 : first + 3]
    table = pq.read_table(Path(run.store.uri, f"{run.folder}/reports/{number:08d}/predictions"))
    assert table["key"].to_pylist() == predictions.keys


def features_of(run, dataset, split, *, weights="imagenet"):
    """Features of all images of a split by the plain network before training, and their labels."""
    base = run.config.base.model_copy(update={"weights": weights})
    backbone = base_for(run.config.model_copy(update={"base": base}), run.store, dataset)
    part = frozen_part_of(backbone, 0, map_dtype="float32")
    shards = dataset.shards_of(split)
    batches = list(stored_images(run.store, shards, image_input=part.image_input, batch_size=64))
    images, labels = (np.concatenate(each) for each in zip(*batches, strict=True))
    return part(images).numpy(), labels


@pytest.mark.parametrize("name", ["head only", "head only, nothing kept"])
def test_baselines_answer_the_images_of_the_report_by_cached_or_computed_features(runs, monkeypatch, name):
    run, dataset = runs[0][name], runs[1]
    monkeypatch.setattr(sampled, "SAMPLE_ROWS", 90)
    run = replace(run, config=run.config.model_copy(update={"baselines": BaselinesConfig(made="all")}))
    report, predictions = load_report(run, evaluate_run(run, dataset))
    commonest, neighbours, linear, random = report.baselines.made
    assert (commonest.images, set(report.baselines.training_images.values())) == (49, {90})
    assert report.baselines.not_made == {}
    known, asked = (features_of(run, dataset, split) for split in ("train", "test"))
    random_known, random_asked = (features_of(run, dataset, split, weights="none") for split in ("train", "test"))
    rows = sample_of(run.store, dataset, "train").rows
    right = predictions.predicted == predictions.labels
    for baseline, answers in (
        (neighbours, nearest_neighbours(known[0][rows], known[1][rows], asked[0])),
        (linear, fit_ridge(known[0][rows], known[1][rows]).predict(asked[0])),
        (random, fit_ridge(random_known[0][rows], random_known[1][rows]).predict(random_asked[0])),
    ):
        assert baseline == Baseline.compared(baseline.name, answers == asked[1], right)
    assert min(neighbours.accuracy, linear.accuracy) > 0.5
    assert random.accuracy < linear.accuracy
    transfer = report.baselines.transfer
    assert (transfer.accuracy, transfer.run_accuracy) == (random.accuracy, linear.accuracy)


def test_baselines_that_would_be_costly_are_not_made_and_none_if_none_are_wanted(runs):
    run, dataset = runs[0]["head only, nothing kept"], runs[1]
    baselines = load_report(run, evaluate_run(run, dataset))[0].baselines
    assert [each.name for each in baselines.made] == ["commonest class"]
    for name in ("linear probe", "random network"):
        assert "a twentieth of the training" in baselines.not_made[name]
    assert load_report(run, evaluate_run(run, dataset, split="train"))[0].baselines is None
    run = replace(run, config=run.config.model_copy(update={"baselines": BaselinesConfig(made="none")}))
    assert load_report(run, evaluate_run(run, dataset))[0].baselines is None


def rounded_otherwise(path, classes):
    """Predictions that are stored in a file, changed a little there."""
    before = Predictions.from_parquet(path.read_bytes(), classes, name=path.name)
    after = replace(before, probabilities=0.999 * before.probabilities + np.float32(0.0001))
    path.write_bytes(after.to_parquet())
    return after


def test_what_a_worker_stored_that_died_since_counts(runs, monkeypatch):
    run, dataset = runs[0]["a block, too"], runs[1]
    (unit,) = units_of(dataset.shards_of("test"))
    work = EvaluationWork(run.config, run.id, 77, False, None)
    with monkeypatch.context() as on_a_gpu:
        on_a_gpu.setattr(RunAnswers, "rounds_coarsely", True)
        first = work(unit)
    path = Path(run.store.uri, f"{run.folder}/reports/00000077/predictions.parquet")
    stored = rounded_otherwise(path, dataset.classes)
    second = work(unit)
    assert second.sha256 == sha256_hex(path.read_bytes()) != first.sha256
    assert second.tally == Tally.of(stored) != first.tally
    assert second.rounds_coarsely
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptObjectError):
        work(unit)
    shutil.rmtree(path.parent)


def test_an_evaluation_whose_driver_was_killed_goes_on(runs, monkeypatch):
    run, dataset = runs[0]["a block, too"], runs[1]
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)

    class KilledError(Exception):
        pass

    def killed(gathered, unit, part):
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(evaluate._Gathered, "add", killed)
        with pytest.raises(KilledError):
            evaluate_run(run, dataset)
    number = max(int(path.name[:8]) for path in Path(run.store.uri, run.folder, "reports").iterdir())
    first = Path(run.store.uri, f"{run.folder}/reports/{number:08d}/predictions/part-00000.parquet")
    stored = rounded_otherwise(first, dataset.classes)
    # Another evaluation does not go on with it.
    assert evaluate_run(run, dataset, exactly=True) == number + 1
    shutil.rmtree(first.parents[1].with_name(f"{number + 1:08d}"))
    first.parents[1].with_name(f"{number + 1:08d}.json").unlink()
    assert evaluate_run(run, dataset) == number
    report, predictions = load_report(run, number)
    np.testing.assert_array_equal(predictions.probabilities[: len(stored.keys)], stored.probabilities)
    assert report.metrics == Tally.of(predictions).metrics()
    assert evaluate_run(run, dataset) == number + 1


@pytest.mark.parametrize("is_same", [True, False])
def test_two_evaluations_at_once_both_end(runs, monkeypatch, is_same):
    run, dataset = runs[0]["head only"], runs[1]
    serving = None if is_same else ServingAnswers(1, Reported("digits/00000001", "test", 0.5), "it was removed")
    store, first = evaluate._store, []

    def after_another_one(*arguments):
        monkeypatch.setattr(evaluate, "_store", store)
        monkeypatch.setattr(evaluate, "now_utc", lambda: "2026-01-01T00:00:00+00:00")
        first.append(evaluate_run(run, dataset, serving=serving))
        monkeypatch.undo()
        return store(*arguments)

    monkeypatch.setattr(evaluate, "_store", after_another_one)
    second = evaluate_run(run, dataset)
    assert second == first[0] + (not is_same)
    (theirs, stored), (ours, predictions) = load_report(run, first[0]), load_report(run, second)
    assert (theirs.serving is None, ours.serving) == (is_same, None)
    np.testing.assert_array_equal(predictions.probabilities, stored.probabilities)


@pytest.mark.parametrize(
    ("name", "by_features"), [("head only", True), ("head only, nothing kept", False), ("a block, too", False)]
)
def test_the_fast_way_gives_what_the_graph_gives(trained, name, by_features):
    probabilities, is_by_features = trained(name)
    exact, exact_is_by_features = trained(name, exactly=True)
    assert (is_by_features, exact_is_by_features) == (by_features, False)
    np.testing.assert_allclose(probabilities, exact, atol=1e-5)
    assert len({row.argmax() for row in exact}) > 3


def test_a_base_that_no_phase_trained_is_not_run_again(trained, monkeypatch):
    monkeypatch.setattr(extract, "build_forward", None)
    trained("head only")


def test_held_out_images_go_through_the_frozen_part_with_the_others_where_they_end_in_it():
    asked = {"train": Request("train", 0), "validation": Request("validation", 0), "test": Request("test", 0)}
    head_only = digits_config("images", "storage", phases=HEAD_ONLY)
    assert requests_of(head_only, head_only.phases[0]) == list(asked.values())
    both = digits_config("images", "storage")
    assert requests_of(both, both.phases[0]) == [asked["train"], asked["validation"]]
