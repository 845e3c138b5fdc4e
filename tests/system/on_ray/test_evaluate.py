"""Evaluation and comparison on two actors tell what they tell in one process. Killed ones are in tests/proof/on_ray."""

from dataclasses import replace

import numpy as np
import pytest

from tests.digits import digits_config, ingest_digits_in_shards
from transfer.config import WorkersConfig
from transfer.ensure import evaluate_anew, fit, published
from transfer.evaluation import units
from transfer.evaluation.stored import load_report
from transfer.registry import comparison_work
from transfer.registry.compare_versions import compare_versions
from transfer.registry.promote import promote
from transfer.storage import open_store
from transfer.training.run import open_run

pytestmark = pytest.mark.usefixtures("ray_cluster")

TWO = WorkersConfig(count=2, cpus_per_worker=0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two finished runs, the first of which is published and serves, and their dataset."""
    config, dataset = ingest_digits_in_shards(tmp_path_factory.mktemp("digits"))
    store = open_store(config.storage)
    runs = []
    for rate in (3e-3, 1e-2):
        phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": rate}]
        changed = digits_config(config.dataset.source, config.storage.uri, dataset=config.dataset, phases=phases)
        runs.append(open_run(store, changed, dataset))
        fit(runs[-1], dataset)
        evaluate_anew(runs[-1], split=None)
    promote(store, published(runs[0]), reason="to serve")
    return runs, dataset


def on_two(run):
    return replace(run, config=run.config.model_copy(update={"workers": TWO}))


def test_two_actors_evaluate_as_one_process_does(trained, monkeypatch):
    monkeypatch.setattr(units, "UNIT_SIZE_BYTES", 1)
    (_, run), dataset = trained
    here, there = (load_report(each, evaluate_anew(each, split="train")) for each in (run, on_two(run)))
    assert len(dataset.shards_of("train")) > 3
    assert there[0].metrics == here[0].metrics
    assert [mistake.key for mistake in there[0].mistakes] == [mistake.key for mistake in here[0].mistakes]
    assert there[1].keys == here[1].keys
    np.testing.assert_allclose(there[1].probabilities, here[1].probabilities, atol=1e-6)
    assert there[0].serving == here[0].serving


def counted(comparison):
    """What does not depend on rounding, or on how fast a machine is."""
    sides = [
        (side.version, side.metrics.accuracy, side.metrics.confusion)
        for side in (comparison.challenger, comparison.champion)
    ]
    flips = {(flip.key, flip.champion, flip.challenger) for flip in comparison.flips}
    return sides, comparison.gained, comparison.lost, comparison.interval, flips


def test_heads_on_cached_features_and_actors_compare_as_the_exported_models_do(trained, monkeypatch, caplog):
    (_, run), dataset = trained
    sides = {"champion": 1, "challenger": published(run).number}
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
