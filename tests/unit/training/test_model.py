"""Splits of a real network: what each depth trains."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config
from tests.trained import build_model, plain_logits
from transfer.backbone.backbone import set_precision
from transfer.config import PhaseConfig
from transfer.errors import BackboneError, ConfigError
from transfer.training.inference import rounds_coarsely

CLASSES = list("0123456789")


@pytest.fixture(scope="module")
def model():
    return build_model(digits_config("images", "storage"), CLASSES)


def phases(*depths):
    return [PhaseConfig(unfreeze=depth) for depth in depths]


def names(variables):
    return {variable.path for variable in variables}


def test_each_depth_trains_the_last_blocks_and_the_head(model):
    blocks = len(model.backbone.blocks)
    trained = [names(model.cut(depth).variables) for depth in range(blocks + 1)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(trained))
    assert trained[0] == names(model.head.trainable_variables)
    everything = names(model.backbone.network.weights) | names(model.head.weights)
    assert trained[blocks] == names(model.cut("all").variables) == everything


def test_a_shallower_split_after_a_deeper_one_trains_less_again(model):
    model.cut("all")
    assert names(model.cut(0).variables) == names(model.head.trainable_variables)


@pytest.mark.parametrize("depth", [0, 1, 2, "all"])
def test_both_parts_together_answer_what_the_model_answers(model, depth):
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)), tf.float32)
    split = model.cut(depth)
    in_parts = split.logits(split.features(images), training=False)
    np.testing.assert_allclose(in_parts, plain_logits(model, images), atol=1e-6)


def test_gradients_stop_at_the_cut(model):
    split = model.cut(1)
    images = tf.random.stateless_uniform((2, 32, 32, 3), seed=(0, 0))
    frozen = [variable.value for variable in split.frozen.weights]
    with tf.GradientTape() as tape:
        tape.watch(frozen)
        loss = tf.reduce_sum(split.logits(split.features(images), training=False))
    assert tape.gradient(loss, frozen) == [None] * len(frozen)


def test_variables_of_several_depths_have_no_repeats(model):
    found = [id(variable) for variable in model.variables_of(phases(0, 2, 1))]
    assert len(found) == len(set(found)) == len(model.cut(2).variables)


def test_asking_for_variables_leaves_a_phase_as_it_is(model):
    expected = names(model.cut(1).variables)
    assert names(model.variables_of(phases("all"))) > expected
    cut = model.cut(1)
    model.variables_of(phases(0, "all"))
    assert names(cut.variables) == expected


@pytest.mark.parametrize(("precision", "coarse"), [("off", False), ("bfloat16", True)])
def test_half_precision_anywhere_rounds_coarsely(precision, coarse):
    set_precision(precision)
    try:
        assert rounds_coarsely(build_model(digits_config("images", "storage"), CLASSES)) is coarse
    finally:
        set_precision("off")


def test_one_sigmoid_is_softmax_over_zero_and_its_logit():
    config = digits_config("images", "storage", head={"output": "sigmoid"})
    images = tf.random.stateless_uniform((2, 32, 32, 3), seed=(0, 0))
    two = build_model(config, ["no", "yes"])
    logits = plain_logits(two, images).numpy()
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(tf.nn.softmax(logits)[:, 1], tf.nn.sigmoid(logits[:, 1]), rtol=1e-6)
    with pytest.raises(ConfigError, match="for exactly 2 classes; the dataset has 10"):
        build_model(config, CLASSES)


@pytest.mark.parametrize("pooling", ["average", "max", "flatten"])
@pytest.mark.parametrize("hidden", [[], [8, 4]])
def test_heads_of_every_shape_answer_logits(pooling, hidden):
    head = {"pooling": pooling, "hidden": hidden, "l2": 1e-3}
    model = build_model(digits_config("images", "storage", head=head), CLASSES)
    assert plain_logits(model, tf.zeros((2, 32, 32, 3))).shape == (2, 10)
    assert float(model.cut(0).regularization()) > 0


def test_the_same_seed_builds_the_same_head_and_another_one_does_not():
    def kernel(seed):
        config = digits_config("images", "storage", training={"batch_size": 16, "seed": seed})
        return np.asarray(build_model(config, CLASSES).head.trainable_variables[0])

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert np.abs(kernel(1) - kernel(2)).max() > 0


def test_a_depth_that_is_not_there_is_refused(model):
    with pytest.raises(BackboneError, match="has 4 blocks"):
        model.cut(99)
