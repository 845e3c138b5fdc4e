"""Augmentation within a step: what it does to images, and that only (seed, step, position) decide."""

import numpy as np
import pytest
import tensorflow as tf

from transfer.augmentation import Augmentation, KeyedDropout, StepRandomness, step_randomness
from transfer.config import AugmentationConfig

BATCH = 8
IMAGES = np.random.default_rng(0).uniform(0, 255, (BATCH, 24, 24, 3)).astype(np.float32)
EACH = [
    {"flip": "horizontal"},
    {"flip": "vertical"},
    {"flip": "both"},
    {"rotation_degrees": 30},
    {"shift": 0.2},
    {"shear_degrees": 20},
    {"zoom": 0.3},
    {"brightness": 0.3},
    {"contrast": 0.5},
]
EVERYTHING = {name: value for change in EACH for name, value in change.items()}


def augmented(change, *, positions=range(BATCH), step=0, seed=0):
    augmentation = Augmentation(AugmentationConfig(**change))

    @tf.function
    def run(images, positions, step):
        with step_randomness(StepRandomness(tf.stack([seed, step]), positions, BATCH)):
            return augmentation(images)

    rows = np.array(positions, np.int32)
    return run(tf.constant(IMAGES[rows]), tf.constant(rows), tf.constant(step)).numpy()


@pytest.mark.parametrize("change", EACH, ids=str)
def test_each_option_changes_images_and_stays_in_range(change):
    found = augmented(change)
    assert found.shape == IMAGES.shape
    assert found.min() >= 0
    assert found.max() <= 255
    assert np.abs(found - IMAGES).max() > 1


def test_no_option_is_no_augmentation():
    assert not AugmentationConfig().is_active
    assert not AugmentationConfig(fill_mode="nearest").is_active
    assert all(AugmentationConfig(**change).is_active for change in EACH)


@pytest.mark.parametrize(("mode", "axis"), [("horizontal", 1), ("vertical", 0)])
def test_a_flip_is_the_image_or_its_mirror(mode, axis):
    found = augmented({"flip": mode})
    mirrored = [np.array_equal(image, np.flip(original, axis)) for image, original in zip(found, IMAGES, strict=True)]
    kept = [np.array_equal(image, original) for image, original in zip(found, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert any(mirrored)
    assert any(kept)


@pytest.mark.parametrize("fill_mode", ["constant", "nearest", "reflect", "wrap"])
def test_every_fill_mode_fills_differently(fill_mode):
    other = "constant" if fill_mode != "constant" else "nearest"
    found = augmented({"shift": 0.3, "fill_mode": fill_mode})
    assert np.abs(found - augmented({"shift": 0.3, "fill_mode": other})).max() > 1


def test_what_happens_to_an_image_does_not_depend_on_its_neighbours():
    whole = augmented(EVERYTHING)
    for positions in (range(4), range(4, 8), [6]):
        np.testing.assert_allclose(augmented(EVERYTHING, positions=positions), whole[list(positions)], atol=1e-3)


def test_another_step_or_seed_draws_other_numbers_and_the_same_one_the_same():
    first = augmented(EVERYTHING)
    np.testing.assert_array_equal(augmented(EVERYTHING), first)
    assert np.abs(augmented(EVERYTHING, step=1) - first).max() > 1
    assert np.abs(augmented(EVERYTHING, seed=1) - first).max() > 1


def test_dropout_keeps_the_mean_and_the_rows_of_its_replica():
    layer = KeyedDropout(0.25)

    def dropped(positions):
        with step_randomness(StepRandomness(tf.constant([0, 0]), tf.constant(positions), 64)):
            return layer(tf.ones((len(positions), 500)), training=True).numpy()

    whole = dropped(list(range(64)))
    assert set(np.unique(whole)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(whole == 0) == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(dropped([10, 3]), whole[[10, 3]])
    np.testing.assert_array_equal(layer(tf.ones((2, 5))), 1.0)


def test_a_random_layer_outside_of_a_step_is_a_mistake_that_is_named():
    with pytest.raises(RuntimeError, match="outside of a training step"):
        KeyedDropout(0.5)(tf.ones((2, 5)), training=True)
