"""The fast ways to what a trained model answers agree with the graph that is exported, and are told from it."""

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer.ensure import fit
from transfer.evaluation.evaluate import probabilities_of
from transfer.features import extract
from transfer.features.layout import Request
from transfer.storage import open_store
from transfer.training.feature_plan import requests_of
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model

HEAD_ONLY = [{"unfreeze": 0, "epochs": 2, "learning_rate": 3e-3}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Finished runs by name, their dataset, and how to have one answer."""
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
        model, _ = restore_model(runs[name], dataset)
        return probabilities_of(runs[name], dataset, "test", model, exactly=exactly)

    return answers


@pytest.mark.parametrize("name", ["head only", "head only, nothing kept", "a block, too"])
def test_the_fast_way_gives_what_the_graph_gives(trained, name):
    probabilities, is_exact = trained(name)
    exact, exact_is_exact = trained(name, exactly=True)
    assert (is_exact, exact_is_exact) == (False, True)
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
