"""Trials that are judged by cross-validation, asked of an actor without Ray."""

from statistics import fmean

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, ingest_some_digits
from tests.trained import train
from transfer.catalog.run import EpochRow
from transfer.config import EarlyStoppingConfig, PhaseConfig, parse_config
from transfer.errors import ConfigError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.history import final_row
from transfer.training.loop import Training
from transfer.training.rows import Fold
from transfer.training.run import open_run
from transfer.training.shared_models import SharedModels
from transfer.tuning.records import open_sweep
from transfer.tuning.space import fixed_trials
from transfer.tuning.trial_actor import TrialActor
from transfer.tuning.trial_runner import Failure, FoldsRunner, TrialRunner, TrialState

FOLDS = 3
FIGURES = ("loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate")
TWO_HEADS = {"phases.0.learning_rate": [1e-3, 1e-2]}
ONE_DEEPER = {"phases.0.unfreeze": [1]}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def swept(digits, name, *, space, phases=(), **changes):
    """A sweep of its own, and its trials, for runs of their own."""
    source, dataset = digits
    phases = list(phases) or [{"unfreeze": 0, "epochs": 3, "learning_rate": 1e-3}]
    base = digits_config(source, str(source.parent / "storage"), phases=phases, **changes)
    sweep = {"space": space, "search": "grid", "folds": FOLDS}
    named = {"name": name, "dataset": {**base.dataset.model_dump(mode="json"), "name": "digits"}, "sweep": sweep}
    config = parse_config({**base.model_dump(mode="json"), **named})
    return open_sweep(open_store(config.storage), config, dataset), fixed_trials(config)


def run_of(sweep, trial, fold):
    return open_run(sweep.store, trial.config, sweep.dataset, fold=Fold(fold, FOLDS))


def ends_of(sweep, trial):
    """The last checkpoint of each of a trial's folds."""
    return [Checkpoints(run_of(sweep, trial, fold)).complete() for fold in range(FOLDS)]


def trained_by_hand(digits, name, trial):
    """The last checkpoint of each fold, trained by a call of its own, as runs of another name."""
    _, dataset = digits
    ends = []
    for fold in range(FOLDS):
        config = trial.config.model_copy(update={"name": name})
        run = open_run(open_store(config.storage), config, dataset, fold=Fold(fold, FOLDS))
        train(run, dataset)
        ends.append(Checkpoints(run).complete())
    return ends


def assert_rows_close(rows, expected):
    for figure in FIGURES:
        found = [getattr(row, figure) for row in rows]
        np.testing.assert_allclose(found, [getattr(row, figure) for row in expected], rtol=1e-5, err_msg=figure)


def assert_means(rows, histories):
    for epoch, row in enumerate(rows):
        for figure in FIGURES:
            mean = fmean(getattr(history[epoch], figure) for history in histories)
            assert getattr(row, figure) == pytest.approx(mean, rel=1e-5), figure


@pytest.mark.parametrize(
    "space", [TWO_HEADS, pytest.param(ONE_DEEPER, marks=pytest.mark.proof)], ids=["packed", "alone"]
)
def test_a_trials_figures_are_the_means_of_its_folds_each_trained_by_hand(digits, space):
    name = f"by-hand-{next(iter(space)).split('.')[-1]}"
    sweep, trials = swept(digits, name, space=space)
    actor = TrialActor(sweep, trials)
    states = [actor.advance(trial, 3) for trial in trials]
    for trial, state in zip(trials, states, strict=True):
        assert state.ended
        assert state.failure is None
        assert state.run_id == ""
        assert state.packed_with == len(trials)
        assert state.trained_flops > 0
        by_hand = trained_by_hand(digits, f"{name}-hand", trial)
        assert_means(state.rows, [end.progress.history for end in by_hand])
        for end, expected in zip(ends_of(sweep, trial), by_hand, strict=True):
            for found, weights in zip(end.weights, expected.weights, strict=True):
                assert np.abs(found - weights).max() <= 1e-5 * np.abs(weights).max()
        assert [(row.phase, row.epoch) for row in state.rows] == [(0, 0), (0, 1), (0, 2)]


def test_seconds_are_those_of_all_folds(digits):
    sweep, (trial,) = swept(digits, "seconds", space={"head.dropout": [0.1]})
    rows = TrialActor(sweep, [trial]).advance(trial, 3).rows
    histories = [end.progress.history for end in ends_of(sweep, trial)]
    assert [row.seconds for row in rows] == pytest.approx(
        [sum(row.seconds for row in of_epoch) for of_epoch in zip(*histories, strict=True)]
    )


@pytest.mark.parametrize(
    "space", [TWO_HEADS, pytest.param(ONE_DEEPER, marks=pytest.mark.proof)], ids=["packed", "alone"]
)
@pytest.mark.proof
def test_a_trial_goes_on_after_its_actor_was_killed(digits, space):
    key = next(iter(space)).split(".")[-1]
    whole, trials = swept(digits, f"whole-{key}", space=space)
    expected = TrialActor(whole, trials).advance(trials[0], 3).rows
    cut, trials = swept(digits, f"cut-{key}", space=space)
    before = TrialActor(cut, trials).advance(trials[0], 2).rows
    state = TrialActor(cut, trials).advance(trials[0], 3)
    assert state.ended
    assert state.rows[:2] == before
    assert_rows_close(state.rows, expected)


@pytest.mark.proof
def test_a_trial_whose_actor_was_killed_between_two_folds_trains_those_that_are_behind(digits):
    sweep, (trial,) = swept(digits, "between", space=ONE_DEEPER)
    before = TrialActor(sweep, [trial]).advance(trial, 1).rows
    first = run_of(sweep, trial, 0)
    shared = SharedModels(tf.distribute.get_strategy())
    Training(first, sweep.dataset, shared=shared, start=Checkpoints(first).newest()).next_epoch()
    actor = TrialActor(sweep, [trial])
    assert actor.advance(trial, 1).rows == before
    assert len(actor.advance(trial, 2).rows) == 2
    assert [run_of(sweep, trial, fold).checkpoints.numbers()[-1] for fold in range(FOLDS)] == [2, 2, 2]


@pytest.mark.proof
def test_folds_that_stop_early_end_with_the_epochs_they_went_back_to(digits):
    early = {"early_stopping": {"patience_epochs": 1, "metric": "accuracy"}}
    phases = [{"unfreeze": depth, "epochs": 6, "learning_rate": 2e-2, **early} for depth in (0, 1)]
    sweep, (trial,) = swept(digits, "early", space={"phases.0.learning_rate": [2e-2]}, phases=phases)
    rows = TrialActor(sweep, [trial]).advance(trial, 12).rows
    histories = [end.progress.history for end in ends_of(sweep, trial)]
    kept = [final_row(history, trial.config.phases) for history in histories]
    assert_means(rows[-1:], [[row] for row in kept])
    for phase in (0, 1):
        epochs = [sum(row.phase == phase for row in history) for history in histories]
        assert sum(row.phase == phase for row in rows) == max(epochs)
    assert sum(row.seconds for row in rows) == pytest.approx(sum(row.seconds for each in histories for row in each))


class Known(TrialRunner):
    """A fold whose validation accuracies are known beforehand, phase by phase, and that may fail."""

    def __init__(self, *phases, fails_after=None):
        self._all = [(phase, accuracy) for phase, of_phase in enumerate(phases) for accuracy in of_phase]
        self._fails_after = fails_after
        self._done = 0
        self.is_stopped = False

    @property
    def rows(self):
        rest = {"loss": 1.0, "accuracy": 0.5, "validation_loss": 1.0, "learning_rate": 1e-3, "seconds": 1.0}
        done = enumerate(self._all[: self._done])
        return tuple(EpochRow(phase=phase, epoch=n, validation_accuracy=found, **rest) for n, (phase, found) in done)

    @property
    def phase(self):
        return self._all[self._done][0] if self._done < len(self._all) else self._all[-1][0] + 1

    @property
    def ended(self):
        return self._done in (len(self._all), self._fails_after)

    def next_epoch(self):
        self._done += 1

    def state(self):
        failure = Failure("The loss became nan", "loss") if self._done == self._fails_after else None
        return TrialState(run_id="fold", rows=self.rows, ended=self.ended, failure=failure)

    def stop(self):
        self.is_stopped = True


def phases_that_stop_early(count):
    early = EarlyStoppingConfig(patience_epochs=2, metric="accuracy")
    return [PhaseConfig(epochs=9, early_stopping=early) for _ in range(count)]


def test_folds_wait_for_each_other_at_the_end_of_a_phase():
    one = Known([0.5, 0.75, 0.25, 0.25], [0.25, 0.25, 0.5, 0.25, 0.25])
    other = Known([0.25, 0.25, 0.5, 0.75, 0.5, 0.5], [1.0, 0.5, 0.5])
    folded = FoldsRunner([one, other], phases_that_stop_early(2))
    reported = []
    while not folded.ended:
        folded.next_epoch()
        assert folded.rows[:-1] == tuple(reported)
        reported.append(folded.rows[-1])
    accuracies = [row.validation_accuracy for row in reported]
    # From the end of its phase on, a fold counts with what it went back to.
    assert accuracies[:6] == [0.375, 0.5, 0.375, 0.75, 0.625, 0.75]
    assert accuracies[6:] == [0.625, 0.375, 0.75, 0.625, 0.75]
    assert [(row.phase, row.epoch, row.seconds) for row in reported] == [
        *((0, epoch, 2.0) for epoch in range(4)),
        *((0, epoch, 1.0) for epoch in range(4, 6)),
        *((1, epoch, 2.0) for epoch in range(6, 9)),
        *((1, epoch, 1.0) for epoch in range(9, 11)),
    ]


def test_a_fold_that_fails_fails_the_trial():
    folds = [Known([0.5, 0.5, 0.5]), Known([0.5, 0.5, 0.5], fails_after=1)]
    folded = FoldsRunner(folds, [PhaseConfig(epochs=3)])
    folded.next_epoch()
    state = folded.state()
    assert folded.ended
    assert state.ended
    assert state.failure == Failure("The loss became nan", "loss")
    assert len(state.rows) == 1


def test_the_folds_of_a_trial_that_failed_are_trained_no_further(digits):
    sweep, (trial,) = swept(digits, "no-further", space=ONE_DEEPER)
    actor = TrialActor(sweep, [trial])
    folds = [Known([0.5, 0.5, 0.5]), Known([0.5, 0.5, 0.5], fails_after=1)]
    # Real folds that fail do so in the same epoch.
    actor._open[actor._run_id(trial, None)] = FoldsRunner(folds, trial.config.phases)
    assert actor.advance(trial, 3).failure
    assert all(fold.is_stopped for fold in folds)


@pytest.mark.parametrize(
    "space",
    [
        {"phases.0.learning_rate": [1e-3, 1e38]},
        pytest.param({"phases.0.learning_rate": [1e38]}, marks=pytest.mark.proof),
    ],
)
def test_a_trial_whose_loss_is_not_finite_fails_with_the_reason(digits, space):
    sgd = [{"unfreeze": 0, "epochs": 2, "optimizer": "sgd"}]
    sweep, trials = swept(digits, f"diverges-{len(space['phases.0.learning_rate'])}", space=space, phases=sgd)
    actor = TrialActor(sweep, trials)
    *others, failed = [actor.advance(trial, 2) for trial in trials]
    assert "The loss became" in failed.failure.reason
    assert failed.ended
    assert len(failed.rows) < 2
    assert all(other.ended and other.failure is None and len(other.rows) == 2 for other in others)


@pytest.mark.proof
def test_a_trial_that_is_stopped_can_go_on_in_every_fold(digits):
    sweep, trials = swept(digits, "stopped", space=TWO_HEADS)
    actor = TrialActor(sweep, trials)
    before = actor.advance(trials[0], 1).rows
    actor.stop(trials[0])
    assert len(actor.advance(trials[1], 3).rows) == 3
    assert [len(run_of(sweep, trials[0], fold).checkpoints.numbers()) for fold in range(FOLDS)] == [1, 1, 1]
    state = actor.advance(trials[0], 3)
    assert state.ended
    assert state.rows[:1] == before


def test_what_cannot_be_cross_validated_is_known_before_anything_is_trained(digits):
    sweep, trials = swept(digits, "all", space={"phases.0.unfreeze": [0, "all"]})
    with pytest.raises(ConfigError, match="Phase 0 cannot be cross-validated"):
        TrialActor(sweep, trials).survey()


def test_a_survey_asks_for_what_all_splits_need(digits):
    sweep, trials = swept(digits, "survey", space=TWO_HEADS)
    assert {request.split for request in TrialActor(sweep, trials).survey().requests} == {"train", "validation", "test"}
