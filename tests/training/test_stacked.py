"""Trials that are trained side by side each learn what they would learn alone."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, ingest_some_digits, write_some_digits
from transfer.dataset.ingest import ingest
from transfer.errors import ConfigError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.inputs import Inputs
from transfer.training.loop import train
from transfer.training.model import build_model
from transfer.training.restore import restore_model
from transfer.training.run import open_run
from transfer.training.stacked import Pack
from transfer.tuning.packs import pack_key

SAME = 1e-5
EPOCHS = 2


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def two_digits(tmp_path_factory):
    """Digits of two classes."""
    folder = tmp_path_factory.mktemp("two")
    source = write_some_digits(folder / "images")
    for label in range(2, 10):
        shutil.rmtree(source / str(label))
    config = digits_config(source, str(folder / "storage"))
    return source, ingest(config, open_store(config.storage))


@pytest.fixture(scope="module")
def digits_to_train_on_only(tmp_path_factory):
    """Digits without a validation split."""
    folder = tmp_path_factory.mktemp("unvalidated")
    source = write_some_digits(folder / "images")
    split = {"source": str(source), "validation": 0.0, "test": 0.2}
    config = digits_config(source, str(folder / "storage"), dataset=split)
    return source, ingest(config, open_store(config.storage))


def configured(digits, *, phase=None, head=None, training=None, **sections):
    """A configuration of one phase on the head, from changes to its sections."""
    source, _ = digits
    return digits_config(
        source,
        str(source.parent / "storage"),
        phases=[{"unfreeze": 0, "epochs": EPOCHS, "learning_rate": 3e-3, **(phase or {})}],
        head={"dropout": 0.2, **(head or {})},
        training={"batch_size": 20, **(training or {})},
        **{"activations": "always", **sections},
    )


def with_changes(common, changes):
    """Sections of `common` with those of one trial put in."""
    return {
        section: {**common.get(section, {}), **changes.get(section, {})} for section in sorted({*common, *changes})
    }


def new_run(digits, run_id, config):
    return open_run(open_store(config.storage), config, digits[1], run_id=run_id)


def new_runs(digits, name, common, trials):
    """A run of each trial, with ids that begin with `name`."""
    configs = [configured(digits, **with_changes(common, trial)) for trial in trials]
    assert len({pack_key(config) for config in configs}) == 1
    return [new_run(digits, f"{name}-{number}", config) for number, config in enumerate(configs)]


def pack_of(digits, runs, *, folder=None):
    _, dataset = digits
    inputs = Inputs(runs[0], dataset, build_model(runs[0].config, dataset.classes))
    inputs.extract()
    return Pack(runs, dataset, inputs.open(0), folder=folder or f"packs/{runs[0].id}")


def trained_together(digits, runs, **options):
    pack = pack_of(digits, runs, **options)
    while pack.live:
        pack.next_epoch()
    return pack


def trained_alone(digits, run):
    """The same run again, on its own."""
    alone = new_run(digits, f"{run.id}-alone", run.config)
    train(alone, digits[1], strategy=tf.distribute.get_strategy())
    return Checkpoints(alone).complete()


def relative_difference(left, right):
    """Largest difference in any array, relative to the largest weight in it."""
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(left, right, strict=True))


def assert_same_history(found, expected, *, images):
    assert [(row.phase, row.epoch) for row in found] == [(row.phase, row.epoch) for row in expected]
    for name in ("loss", "validation_loss", "learning_rate"):
        values = [[getattr(row, name) for row in rows] for rows in (found, expected)]
        if expected[0].validation_loss is None and name == "validation_loss":
            assert values[0] == values[1]
        else:
            np.testing.assert_allclose(*values, rtol=SAME)
    for name, split in (("accuracy", "train"), ("validation_accuracy", "validation")):
        if images[split]:
            values = [[getattr(row, name) for row in rows] for rows in (found, expected)]
            # One image may be a draw between two classes.
            np.testing.assert_allclose(*values, atol=1.01 / images[split], rtol=0)


def assert_as_alone(digits, run):
    """The run ended as it does on its own."""
    found, expected = Checkpoints(run).complete(), trained_alone(digits, run)
    assert relative_difference(found.weights, expected.weights) < SAME
    images = {split: digits[1].rows(split) for split in ("train", "validation")}
    assert_same_history(found.progress.history, expected.progress.history, images=images)
    assert found.progress.model_copy(update={"history": ()}) == expected.progress.model_copy(update={"history": ()})


WHAT_MAY_DIFFER = [
    {"phase": {"learning_rate": 1e-2}},
    {"head": {"dropout": 0.5}},
    {"head": {"dropout": 0.0, "l2": 0.1}},
    {"training": {"label_smoothing": 0.2}},
    {"training": {"seed": 3}, "head": {"l2": 0.01}},
    {"training": {"seed": 1}, "phase": {"learning_rate": 1e-1}},
]
THREE = [{}, {"training": {"seed": 2}}, {"phase": {"learning_rate": 1e-2}, "head": {"dropout": 0.4, "l2": 0.01}}]
NO_DROPOUT = {"head": {"dropout": 0.0}}
RATES = [{**NO_DROPOUT, "phase": {"learning_rate": rate}} for rate in (1e-1, 1e-3)]
DECAYS = [{"phase": {"optimizer": {"name": "adamw", "weight_decay": decay}}} for decay in (0.0, 0.5)]
SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True}
WARM = {"schedule": {"kind": "cosine", "warmup_epochs": 0.5}}


@pytest.mark.parametrize(
    ("common", "trials"),
    [
        ({}, WHAT_MAY_DIFFER),
        ({}, RATES),
        ({"head": {"hidden": [16, 8]}}, THREE),
        ({"phase": {"optimizer": "adamw", **WARM}}, DECAYS),
        ({"phase": {"optimizer": SGD}, "training": {"class_weights": "balanced"}}, THREE),
        ({"phase": {"optimizer": {"name": "sgd", "clip_norm": 0.05}, "schedule": {"kind": "exponential"}}}, THREE),
        ({"phase": {"optimizer": {"name": "sgd", "momentum": 0.0}}, "head": {"pooling": "flatten"}}, THREE),
        ({"augmentation": {"flip": "horizontal", "views": 2}}, RATES),
    ],
    ids=["keys", "rates", "hidden", "adamw", "nesterov", "clipped", "flattened", "views"],
)
def test_each_trial_of_a_pack_ends_as_it_would_alone(digits, common, trials, request):
    assert digits[1].rows("train") % 20, "the last batch is to be short"
    runs = new_runs(digits, request.node.callspec.id, common, trials)
    trained_together(digits, runs)
    for run in runs:
        assert_as_alone(digits, run)
