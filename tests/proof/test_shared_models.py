"""Runs that are trained in one process share what they can, and none of them notices."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.attention import on_attention
from tests.digits import digits_config, ingest_some_digits
from transfer.storage import open_store
from transfer.training.loop import Training, train
from transfer.training.run import open_run
from transfer.training.shared_models import SharedModels
from transfer.training.step import PhaseProgram

_names = itertools.count()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    source, dataset = ingest_some_digits(folder)
    return digits_config(source, str(folder / "storage")), dataset


def changed(config, *, learning_rate=3e-3, seed=0, weights="none", unfreeze=(0, 1), dropout=0.2, **phase):
    epochs = (2, 1)
    phases = [
        {"unfreeze": depth, "epochs": count, "learning_rate": learning_rate, **phase}
        for depth, count in zip(unfreeze, epochs, strict=False)
    ]
    training = {"batch_size": 16, "seed": seed, "class_weights": weights}
    update = {"phases": phases, "training": training, "head": {"dropout": dropout}}
    return type(config).model_validate({**config.model_dump(), **update})


def alone(config, dataset):
    """Rows and weights of a run that has its process to itself."""
    run = open_run(open_store(config.storage), config, dataset, run_id=f"alone-{next_name()}")
    rows = []
    training = train(run, dataset, shared=SharedModels(tf.distribute.get_strategy()), on_epoch=rows.append)
    return rows, [np.asarray(variable) for variable in training.variables_of(config.phases)]


def next_name():
    return next(_names)


def open_training(config, dataset, shared):
    run = open_run(open_store(config.storage), config, dataset, run_id=f"shared-{next_name()}")
    return Training(run, dataset, shared=shared)


def weights_of(training):
    return [np.asarray(variable) for variable in training.weights]


def assert_same(rows, weights, expected):
    expected_rows, expected_weights = expected
    without_time = {"exclude": {"seconds", "images_per_second", "usage"}}
    assert [row.model_dump(**without_time) for row in rows] == [row.model_dump(**without_time) for row in expected_rows]
    for found, wanted in zip(weights, expected_weights, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.thorough
def test_runs_one_after_the_other_on_shared_models_learn_what_each_learns_alone(digits):
    config, dataset = digits
    shared = SharedModels(tf.distribute.get_strategy())
    configs = [
        changed(config, learning_rate=1e-3),
        changed(config, learning_rate=1e-2, seed=3),
        changed(config, unfreeze=(1,)),
        changed(config, dropout=0.0),
    ]
    for each in configs:
        training = open_training(each, dataset, shared)
        rows = []
        while not training.complete:
            rows.append(training.next_epoch())
        assert_same(rows, weights_of(training), alone(each, dataset))


@pytest.mark.parametrize(
    ("keep", "depths"),
    [("auto", [(0, 1), (1, 2)]), pytest.param("never", [(1,), (2,)], marks=pytest.mark.thorough)],
)
def test_runs_that_take_turns_learn_what_each_learns_alone(digits, keep, depths):
    config, dataset = digits
    config = config.model_copy(update={"features": config.features.model_copy(update={"cache": keep})})
    configs = [
        changed(config, learning_rate=rate, weights=weights, unfreeze=unfreeze)
        for rate, weights, unfreeze in zip((1e-3, 1e-2), ("none", {"3": 8.0}), depths, strict=True)
    ]
    assert_turns_change_nothing(configs, dataset)


@pytest.mark.thorough
def test_trials_of_two_ranks_that_take_turns_learn_what_each_learns_alone(digits, tmp_path):
    """Neither sees the adapters of the other one, nor what it merged."""
    config, dataset = digits
    from_pixels = config.model_copy(update={"features": config.features.model_copy(update={"cache": "never"})})
    whole = {"unfreeze": 1, "epochs": 1, "learning_rate": 1e-3}
    phases = [[{**whole, "lora": {"rank": rank}}, {**whole, "lora": {"targets": "all"}}] for rank in (1, 2)]
    assert_turns_change_nothing([on_attention(from_pixels, tmp_path, each) for each in phases], dataset)


def assert_turns_change_nothing(configs, dataset):
    shared = SharedModels(tf.distribute.get_strategy())
    trainings = [open_training(each, dataset, shared) for each in configs]
    rows = [[], []]
    while not all(training.complete for training in trainings):
        for training, of_it in zip(trainings, rows, strict=True):
            if not training.complete:
                of_it.append(training.next_epoch())
    for each, training, of_it in zip(configs, trainings, rows, strict=True):
        training.take_turn()
        assert_same(of_it, weights_of(training), alone(each, dataset))


def test_what_differs_in_learning_rate_seed_and_class_weights_alone_is_compiled_once(digits, monkeypatch):
    built = []
    build = PhaseProgram.__init__
    monkeypatch.setattr(PhaseProgram, "__init__", lambda self, *a, **k: (built.append(self), build(self, *a, **k))[1])
    config, dataset = digits
    shared = SharedModels(tf.distribute.get_strategy())
    for rate, seed, weights, dropout in [
        (1e-3, 0, "none", 0.2),
        (1e-2, 0, "none", 0.2),
        (1e-3, 5, "balanced", 0.2),
        (1e-3, 0, "none", 0.3),
    ]:
        each = changed(config, learning_rate=rate, seed=seed, weights=weights, dropout=dropout, unfreeze=(1,))
        training = open_training(each, dataset, shared)
        while not training.complete:
            training.next_epoch()
    assert len(built) == 2
    assert built[0]._train_steps.experimental_get_tracing_count() == 1
