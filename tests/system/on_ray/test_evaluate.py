"""Evaluation and comparison on two actors tell what they tell in one process. Killed ones are in tests/proof/on_ray."""

from dataclasses import replace

import numpy as np
import pytest

from tests.digits import digits_config, ingest_digits_in_shards
from tests.reports import load_report
from transfer.config import WorkersConfig
from transfer.ensure import evaluate_anew, fit, published
from transfer.evaluation import units
from transfer.registry import comparison_work
from transfer.registry.compare_versions import compare_versions
from transfer.storage import open_store
from transfer.training.run import open_run

pytestmark = pytest.mark.usefixtures("ray_cluster")

TWO = WorkersConfig(count=2, cpus_per_worker=0.5)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A configuration and its dataset, of several shards a split."""
    return ingest_digits_in_shards(tmp_path_factory.mktemp("digits"))


def trained(ingested, *, learning_rate):
    """A finished run of a head."""
    config, dataset = ingested
    phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": learning_rate}]
    config = digits_config(config.dataset.source, config.storage.uri, dataset=config.dataset, phases=phases)
    run = open_run(open_store(config.storage), config, dataset)
    fit(run, dataset)
    return run


def on_two(run):
    return replace(run, config=run.config.model_copy(update={"workers": TWO}))


def test_two_actors_evaluate_as_one_process_does(ingested, monkeypatch):
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)
    run, dataset = trained(ingested, learning_rate=3e-3), ingested[1]
    here, there = (load_report(each, evaluate_anew(each, split="train")) for each in (run, on_two(run)))
    assert len(dataset.shards_of("train")) > 3
    assert there[0].metrics == here[0].metrics
    assert [mistake.key for mistake in there[0].mistakes] == [mistake.key for mistake in here[0].mistakes]
    assert there[1].keys == here[1].keys
    np.testing.assert_allclose(there[1].probabilities, here[1].probabilities, atol=1e-6)


def counted(comparison):
    """What does not depend on rounding, or on how fast a machine is."""
    sides = [
        (side.version, side.metrics.accuracy, side.metrics.confusion)
        for side in (comparison.challenger, comparison.champion)
    ]
    flips = {(flip.key, flip.champion, flip.challenger) for flip in comparison.flips}
    return sides, comparison.gained, comparison.lost, comparison.interval, flips


@pytest.mark.proof
def test_heads_on_cached_features_and_actors_compare_as_the_exported_models_do(ingested, monkeypatch, caplog):
    dataset = ingested[1]
    for learning_rate in (3e-3, 1e-2):
        run = trained(ingested, learning_rate=learning_rate)
        evaluate_anew(run, split=None)
        published(run)
    sides = {"champion": 1, "challenger": 2}
    exported, shown = compare_versions(run.config, run.store, dataset, **sides)
    assert exported.gained
    assert set(shown) == {flip.sha256 for flip in exported.flips}
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)
    on_actors, shown_of_actors = compare_versions(on_two(run).config, run.store, dataset, **sides)
    assert counted(on_actors) == counted(exported)
    assert shown_of_actors == shown

    caplog.set_level("INFO")
    monkeypatch.setattr(comparison_work, "HEADS_PAY_IMAGES", 0)
    by_head, shown_by_head = compare_versions(run.config, run.store, dataset, **sides)
    assert caplog.text.count("by its head from cached features") == 2
    assert counted(by_head) == counted(exported)
    assert shown_by_head == shown
