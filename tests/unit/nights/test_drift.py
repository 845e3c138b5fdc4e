"""Whether new images can be told from earlier ones by their features."""

import numpy as np
import pytest

from transfer.nights.drift import FEWEST_IMAGES, drift

CHANNELS = 100


def features(count, *, labels=None, shift=0.0, seed=0):
    """Features of one image a row, of which the class decides some and `shift` moves others."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, CHANNELS)).astype(np.float32)
    values[:, :10] += 4 * (np.zeros(count) if labels is None else labels)[:, None]
    values[:, 10:20] += shift
    return values


def area(before, new, labels_before=None, labels_new=None):
    return drift(
        before,
        new,
        labels_before=np.zeros(len(before), np.int32) if labels_before is None else labels_before,
        labels_new=np.zeros(len(new), np.int32) if labels_new is None else labels_new,
        seed=0,
    )


@pytest.mark.parametrize("new", [30, 400])
def test_images_from_the_same_source_cannot_be_told_apart_however_few_they_are(new):
    areas = [area(features(400, seed=2 * seed), features(new, seed=2 * seed + 1)) for seed in range(3)]
    assert abs(np.mean(areas) - 0.5) < 0.08


def test_images_that_look_different_can_be_told_apart():
    assert area(features(400), features(100, shift=1.0, seed=1)) > 0.9


def test_a_larger_difference_is_a_larger_area():
    areas = [area(features(400), features(200, shift=shift, seed=1)) for shift in (0.0, 0.3, 1.0)]
    assert areas == sorted(areas)


def test_other_shares_of_the_classes_alone_are_no_drift():
    labels_before = np.repeat([0, 1], [360, 40]).astype(np.int32)
    labels_new = np.repeat([0, 1], [40, 160]).astype(np.int32)
    before, new = features(400, labels=labels_before), features(200, labels=labels_new, seed=1)
    assert area(before, new) > 0.8, "without labels it looks like drift"
    assert abs(area(before, new, labels_before, labels_new) - 0.5) < 0.1


def test_a_new_class_is_no_drift_of_the_others():
    labels_new = np.repeat([0, 1], [100, 100]).astype(np.int32)
    new = features(200, labels=labels_new, seed=1)
    assert area(features(400), new) > 0.7
    assert abs(area(features(400), new, labels_new=labels_new) - 0.5) < 0.1


def test_drift_within_a_class_is_found_although_its_share_changed():
    labels_before = np.repeat([0, 1], [300, 100]).astype(np.int32)
    labels_new = np.repeat([0, 1], [50, 150]).astype(np.int32)
    before = features(400, labels=labels_before)
    assert area(before, features(200, labels=labels_new, shift=1.0, seed=1), labels_before, labels_new) > 0.9


def test_it_is_the_same_each_time():
    before, new = features(100), features(50, shift=0.5, seed=1)
    assert area(before, new) == area(before, new)


def test_with_hardly_an_image_of_shared_classes_nothing_is_said():
    labels = np.repeat([0, 1], [FEWEST_IMAGES - 1, 91]).astype(np.int32)
    new = features(len(labels), labels=labels)
    assert area(features(400), new, labels_new=labels) is None
    assert area(new, features(400), labels_before=labels) is None


def test_a_feature_that_never_varies_does_no_harm():
    before, new = features(100), features(50, seed=1)
    before[:, 3] = new[:, 3] = 7.0
    assert np.isfinite(area(before, new))
