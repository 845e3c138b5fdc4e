"""The learning-rate range test: what it measures, where it stops, and that its suggestion trains well."""

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.trained import measure_curve, train
from transfer.errors import TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import open_run
from transfer.tuning.lr_curve import RateCurve
from transfer.tuning.lr_find import range_test_of


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def configured(digits, *depths, optimizer="adam", rate=1e-3, epochs=2, **changes):
    phases = [{"unfreeze": depth, "epochs": epochs, "learning_rate": rate, "optimizer": optimizer} for depth in depths]
    return digits_config(digits[0], str(digits[0].parent / "storage"), phases=phases, **changes)


def measured(digits, *depths, low=1e-7, high=10.0, steps=200, phase=0, **changes):
    config = configured(digits, *depths, **changes)
    store = open_store(config.storage)
    test = range_test_of(store, config, digits[1], phase=phase, low=low, high=high, steps=steps)
    return measure_curve(test, digits[1])


def validation_loss(digits, *depths, **changes):
    """Loss on the validation split after training; infinite when it diverged."""
    config = configured(digits, *depths, **changes)
    run = open_run(open_store(config.storage), config, digits[1])
    train(run, digits[1])
    return Checkpoints(run).complete().progress.history[-1].validation_loss


@pytest.mark.parametrize(
    ("depth", "optimizer"),
    [(0, "adam"), pytest.param(0, "sgd", marks=pytest.mark.proof), pytest.param(1, "adam", marks=pytest.mark.proof)],
)
def test_training_at_the_suggestion_beats_a_hundredth_and_a_hundred_times_of_it(digits, depth, optimizer):
    rate = measured(digits, depth, optimizer=optimizer).steepest
    low, at, high = (
        validation_loss(digits, depth, optimizer=optimizer, rate=factor * rate) for factor in (0.01, 1, 100)
    )
    assert at < 0.8 * low
    assert at < 0.8 * high


def test_both_suggestions_lie_where_the_loss_falls(digits):
    curve = measured(digits, 0)
    assert 3e-3 < curve.steepest < 0.3
    assert 3e-3 < curve.tenth_of_minimum < 0.5


def test_the_same_test_gives_the_same_curve(digits):
    first, second = (measured(digits, 0, steps=40) for _ in range(2))
    assert first.rates == second.rates
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-6)


def test_rates_rise_by_the_same_factor_from_end_to_end(digits):
    rates = np.array(measured(digits, 0, low=1e-4, high=1e-1, steps=31).rates)
    np.testing.assert_allclose(rates, np.geomspace(1e-4, 1e-1, 31), rtol=1e-4)


def test_a_loss_that_grows_out_of_bounds_ends_the_test(digits):
    curve = measured(digits, 0, high=1e9, optimizer="sgd")
    assert curve.diverged
    assert len(curve.losses) < 200
    assert np.isfinite(curve.losses).all()
    assert 3e-3 < curve.steepest < 1


def test_a_later_phase_is_tested_where_the_earlier_ones_end(digits):
    fresh = measured(digits, 1, steps=20, high=1e-6)
    later = measured(digits, 0, 1, phase=1, steps=20, high=1e-6, rate=1e-2)
    assert np.mean(later.losses) < 0.6 * np.mean(fresh.losses)


def test_a_phase_s_own_rate_and_schedule_do_not_make_another_test(digits):
    config = configured(digits, 0, rate=1e-3)
    ids = set()
    for other in (config, configured(digits, 0, rate=1e-1), configured(digits, 0, 1), configured(digits, 1)):
        ends = {"phase": 0, "low": 1e-7, "high": 10.0, "steps": 200}
        ids.add(range_test_of(open_store(config.storage), other, digits[1], **ends).id)
    assert len(ids) == 2


def synthetic(losses):
    return RateCurve(rates=tuple(np.geomspace(1e-7, 10, len(losses))), losses=tuple(losses), diverged=False)


@pytest.mark.parametrize("seed", range(10))
def test_neither_noise_at_the_start_nor_what_follows_the_minimum_is_taken_for_the_descent(seed):
    steps = np.arange(200)
    losses = 3.0 - 1.5 / (1 + np.exp(-(steps - 130) / 6)) + 0.35 * np.random.default_rng(seed).normal(size=200)
    losses[170:185] = 60.0
    losses[185:] = 0.0
    curve = synthetic(losses)
    assert curve.rates[100] < curve.steepest < curve.rates[165]


def test_a_curve_that_ended_at_once_suggests_nothing():
    with pytest.raises(TrainingError, match="after 19 steps"):
        _ = synthetic([1.0] * 19).steepest
