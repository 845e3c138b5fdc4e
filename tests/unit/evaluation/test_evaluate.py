"""The fast ways to what a trained model answers agree with the graph that is exported, and are told from it."""

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer.ensure import fit
from transfer.evaluation.run_answers import RunAnswers
from transfer.evaluation.units import UnitImages, units_of
from transfer.features import extract
from transfer.features.layout import Request
from transfer.storage import open_store
from transfer.training.feature_plan import requests_of
from transfer.training.run import open_run

HEAD_ONLY = [{"unfreeze": 0, "epochs": 2, "learning_rate": 3e-3}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """How to have finished runs answer, by name: probabilities, and whether cached features were enough."""
    source, dataset = ingest_some_digits(tmp_path_factory.mktemp("digits"))
    storage = f"{source.parent}/storage"
    configs = {
        "head only": digits_config(source, storage, phases=HEAD_ONLY),
        "head only, nothing kept": digits_config(source, storage, phases=HEAD_ONLY, features="never"),
        "a block, too": digits_config(source, storage),
    }
    runs = {name: open_run(open_store(config.storage), config, dataset) for name, config in configs.items()}
    for run in runs.values():
        fit(run, dataset)

    def answers(name, *, exactly=False):
        run = runs[name]
        asked = RunAnswers(run, dataset, exactly=exactly)
        (unit,) = units_of(dataset.shards_of("test"))
        found = asked.by_features(unit.shards)
        if found is not None:
            return found, True
        return asked.by_network(UnitImages(run.store, dataset, unit, whole=True)), False

    return answers


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
