"""Chance is told from progress: known values, and thousands of simulated nights."""

from collections import Counter
from math import comb

import numpy as np
import pytest

from transfer.evaluation.metrics import bootstrap_interval, mcnemar


def differences(*, gained, lost, same):
    return np.repeat(np.array([1, -1, 0], np.int8), [gained, lost, same])


def nights(count, *, gained, lost, images, seed=0):
    """Images gained and lost in each of some nights, given the chance of either for each image."""
    drawn = np.random.default_rng(seed).multinomial(images, [gained, lost, 1 - gained - lost], size=count)
    return drawn[:, 0].tolist(), drawn[:, 1].tolist()


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 0, 0.5), (0, 1, 1.0), (5, 0, 1 / 32), (8, 2, 56 / 1024), (9, 1, 11 / 1024), (3, 3, 42 / 64)],
)
def test_mcnemar_counts_the_ways_in_which_a_coin_does_as_well(gained, lost, p_value):
    ways = sum(comb(gained + lost, heads) for heads in range(gained, gained + lost + 1))
    assert mcnemar(gained, lost) == pytest.approx(p_value)
    assert mcnemar(gained, lost) == pytest.approx(ways / 2 ** (gained + lost))


def test_mcnemar_of_many_images_is_near_the_normal_approximation():
    # z = (1100 - 1000 - 1) / sqrt(2100), with continuity correction.
    assert mcnemar(1100, 1000) == pytest.approx(0.01537, abs=2e-4)


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("images", [30, 300, 3000])
def test_an_equal_challenger_is_seldom_taken_for_a_better_one(confidence, images):
    found = Counter(zip(*nights(2000, gained=0.08, lost=0.08, images=images), strict=True))
    promoted = sum(count for night, count in found.items() if mcnemar(*night) <= 1 - confidence)
    assert promoted / 2000 <= 1 - confidence


@pytest.mark.parametrize("differing", [1, 5, 20, 61])
@pytest.mark.parametrize("confidence", [0.6, 0.95, 0.99])
def test_an_equal_challenger_is_never_likelier_to_pass_than_was_asked(differing, confidence):
    passing = [gained for gained in range(differing + 1) if mcnemar(gained, differing - gained) <= 1 - confidence]
    assert sum(comb(differing, gained) for gained in passing) / 2**differing <= 1 - confidence


def test_a_much_better_challenger_is_nearly_always_found():
    gained, lost = nights(500, gained=0.08, lost=0.02, images=1000)
    assert np.mean([mcnemar(*night) <= 0.05 for night in zip(gained, lost, strict=True)]) > 0.99


def test_the_interval_of_many_images_is_near_the_normal_approximation():
    sample = differences(gained=600, lost=400, same=9000)
    deviation = sample.std() / np.sqrt(len(sample))
    interval = bootstrap_interval(600, 400, images=10_000, confidence=0.95, seed=0)
    assert interval.low == pytest.approx(0.02 - 1.645 * deviation, abs=deviation / 10)
    assert interval.high == pytest.approx(0.02 + 1.645 * deviation, abs=deviation / 10)


def test_each_end_of_the_interval_holds_at_its_confidence():
    true_difference = 0.02
    intervals = [
        bootstrap_interval(gained, lost, images=500, confidence=0.9, seed=night)
        for night, (gained, lost) in enumerate(zip(*nights(300, gained=0.1, lost=0.08, images=500), strict=True))
    ]
    # 300 nights have a standard error of 1.7 points.
    assert np.mean([interval.low > true_difference for interval in intervals]) == pytest.approx(0.1, abs=0.05)
    assert np.mean([interval.high < true_difference for interval in intervals]) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(("gained", "lost", "value"), [(0, 40, -1), (0, 0, 0), (40, 0, 1)])
def test_without_any_variation_the_interval_is_a_point(gained, lost, value):
    interval = bootstrap_interval(gained, lost, images=40, confidence=0.95, seed=0)
    assert (interval.low, interval.high) == (value, value)


def test_the_interval_is_the_same_again_and_wider_for_more_confidence():
    first, again = (bootstrap_interval(12, 7, images=119, confidence=0.95, seed=0) for _ in range(2))
    assert first == again
    surer = bootstrap_interval(12, 7, images=119, confidence=0.99, seed=0)
    assert surer.low < first.low < first.high < surer.high
