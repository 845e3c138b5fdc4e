"""Which trials fit together into one program."""

from pathlib import Path

import pytest

from tests.digits import digits_config
from transfer.tuning.plan import pack_key


def key_of(*, phase=None, phases=None, **sections):
    phases = phases or [{"unfreeze": 0, "epochs": 2, "optimizer": "adamw", **(phase or {})}]
    storage = sections.pop("storage", "/storage")
    return pack_key(digits_config(Path("/images"), storage, phases=phases, **sections))


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": {"learning_rate": 0.1}},
        {"phase": {"optimizer": {"name": "adamw", "weight_decay": 0.1}}},
        {"head": {"dropout": 0.5}},
        {"head": {"dropout": 0.2, "l2": 0.1}},
        {"training": {"batch_size": 16, "label_smoothing": 0.1}},
        {"training": {"batch_size": 16, "seed": 7}},
        {"name": "other"},
        {"storage": "/elsewhere"},
        {"workers": {"max_failures": 1}},
        {"publish": {"enabled": False}},
    ],
    ids=str,
)
def test_trials_that_differ_in_what_a_program_can_hold_side_by_side_fit_together(changes):
    assert key_of(**changes) == key_of() is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": {"epochs": 3}},
        {"phase": {"optimizer": {"name": "adamw", "clip_norm": 1.0}}},
        {"phase": {"optimizer": {"name": "sgd"}}},
        {"phase": {"schedule": {"kind": "cosine"}}},
        {"phase": {"early_stopping": {"patience_epochs": 1}}},
        {"head": {"dropout": 0.2, "hidden": [8]}},
        {"head": {"dropout": 0.2, "output": "sigmoid"}},
        {"head": {"dropout": 0.2, "pooling": "max"}},
        {"training": {"batch_size": 8}},
        {"training": {"batch_size": 16, "class_weights": "balanced"}},
        {"augmentation": {"flip": "horizontal", "views": 2}},
        {"dataset": {"source": "/others"}},
        {"features": {"cache": "auto", "map_dtype": "float16"}},
    ],
    ids=str,
)
def test_trials_that_differ_in_anything_else_do_not(changes):
    assert key_of(**changes) not in (key_of(), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": {"unfreeze": 1}},
        {"phase": {"unfreeze": "all"}},
        {"phases": [{"unfreeze": 0}, {"unfreeze": 0}]},
        {"augmentation": {"flip": "horizontal"}},
        {"features": "never"},
        {"training": {"batch_size": 16, "mixed_precision": "bfloat16"}},
    ],
    ids=str,
)
def test_a_trial_of_more_than_a_head_on_what_is_kept_is_trained_alone(changes):
    assert key_of(**changes) is None


def test_a_phase_that_leaves_augmentation_out_can_be_packed():
    assert key_of(augmentation={"flip": "horizontal"}, phase={"augment": False}) is not None


def test_trials_that_train_on_views_fit_together_when_these_are_drawn_from_the_same_seed():
    views = {"flip": "horizontal", "views": 2}
    one, other = (key_of(augmentation=views, training={"batch_size": 16, "seed": seed}) for seed in (1, 2))
    assert one != other
    assert one == key_of(augmentation=views, training={"batch_size": 16, "seed": 1}, phase={"learning_rate": 0.1})
