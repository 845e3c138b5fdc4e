"""A run beside the version that serves."""

import numpy as np
import pytest

from transfer.evaluation.against import (
    AgainstServing,
    Beside,
    Reported,
    SameImages,
    ServingAnswers,
    compare_with_serving,
)
from transfer.evaluation.predictions import Predictions

LABELS = np.array([0] * 10, np.int32)


def answering(right):
    """Answers that are right for these of ten images."""
    wrong = ~np.isin(np.arange(10), list(right))
    return Predictions(
        [f"{row}" for row in range(10)], LABELS, np.eye(2, dtype=np.float32)[wrong.astype(int)], ["a", "b"]
    )


def beside(run, same, *, split="test", unknown=()):
    """A run beside version 3, counted in two parts."""
    found = Beside()
    for rows in (slice(4), slice(4, 10)):
        part = SameImages(same.predictions.slice(rows.start or 0, rows.stop), same.comparable[rows])
        found += Beside.of(run.slice(rows.start or 0, rows.stop), part)
    return compare_with_serving(found, "pets/00000002", split, serving(unknown))


def serving(unknown=()):
    return ServingAnswers(3, Reported("pets/00000001", "test", 0.3), "asked elsewhere", unknown)


def test_on_the_same_images_they_are_compared_image_by_image():
    same = SameImages(answering(range(3)), np.ones(10, bool))
    found = beside(answering(range(1, 9)), same, split="validation")
    # Six images fall to the run and one to the version: the binomial tail of 6 or more of 7.
    assert (found.images, found.gained, found.lost, found.left_out) == (10, 6, 1, 0)
    assert found.p_value == pytest.approx(8 / 128)
    assert (found.dataset, found.split, found.accuracy, found.run_accuracy) == ("pets/00000002", "validation", 0.3, 0.8)
    assert "6 only this run has right, 1 only version 3" in found.text


def test_images_that_what_serves_may_have_been_trained_on_count_for_neither():
    same = SameImages(answering(range(3)), np.arange(10) >= 2)
    found = beside(answering(range(1, 9)), same, unknown=("fern",))
    assert (found.images, found.gained, found.lost, found.left_out) == (8, 6, 0, 2)
    assert (found.accuracy, found.run_accuracy) == (1 / 8, 7 / 8)
    assert "2 more are left out" in found.text
    assert "new to it, and whose images it has wrong: fern" in found.text


def test_without_answers_only_the_figure_is_named_and_why():
    found = compare_with_serving("the gate asks both", "pets/00000002", "test", serving())
    assert (found.accuracy, found.gained, found.p_value) == (0.3, None, None)
    assert "30.0 % on test of pets/00000001" in found.text
    assert "not compared on the same images: the gate asks both." in found.text
    none_is_left = beside(answering(range(8)), SameImages(answering(range(3)), np.zeros(10, bool)))
    assert "version 3 may have been trained on all of them." in none_is_left.text


def test_reports_of_earlier_releases_are_read():
    told = {"version": 3, "dataset": "pets/00000001", "split": "test", "accuracy": 0.3}
    assert "not compared on the same images." in AgainstServing.model_validate(told).text
    same = AgainstServing.model_validate(told | {"gained": 6, "lost": 1, "p_value": 0.06}).text
    assert "on the same images: 6 only this run has right" in same
