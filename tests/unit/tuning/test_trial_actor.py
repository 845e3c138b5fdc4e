"""What trains trials, asked without Ray."""

import shutil

import numpy as np
import pytest

from tests.digits import digits_config, ingest_some_digits
from tests.trained import train
from transfer.errors import BaseChangedError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.run import load_run, open_run, pinned_base
from transfer.tuning.records import open_sweep
from transfer.tuning.space import fixed_trials, make_trial
from transfer.tuning.trial_actor import TrialActor
from transfer.tuning.trial_runner import Branch

TOLERANCE = 1e-5
DEPTHS_AND_RATES = {
    "space": {"phases.0.unfreeze": [0, 1], "phases.0.learning_rate": [1e-3, 1e-2]},
    "search": "grid",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    source, dataset = ingest_some_digits(folder)
    return digits_config(source, str(folder / "storage")), dataset


def swept(digits, name, sweep=DEPTHS_AND_RATES, epochs=2, **changes):
    """A sweep of its own, for runs of its own."""
    config, dataset = digits
    phases = [{"unfreeze": 0, "epochs": epochs, "learning_rate": 1e-3}]
    config = type(config).model_validate(
        {**config.model_dump(), "name": name, "phases": phases, "sweep": sweep, **changes}
    )
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"name": "digits"})})
    return open_sweep(open_store(config.storage), config, dataset)


def weights_of(sweep, run_id):
    run = load_run(sweep.store, run_id, sweep.config)
    return Checkpoints(run).complete().weights


def assert_close(found, expected, tolerance=TOLERANCE):
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


def test_trials_packed_or_not_learn_what_each_learns_as_a_single_run(digits):
    sweep = swept(digits, "single")
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    states = [actor.advance(trial, 2) for trial in trials]
    assert [state.packed_with for state in states] == [2, 2, 1, 1]
    assert all(state.ended and len(state.rows) == 2 for state in states)
    assert states[0].trained_flops < states[2].trained_flops
    pinned = {pinned_base(load_run(sweep.store, state.run_id, sweep.config)) for state in states}
    assert len(pinned) == 1
    assert None not in pinned
    for trial, state in zip(trials, states, strict=True):
        run = open_run(sweep.store, trial.config, digits[1], run_id=f"alone-{trial.number}")
        train(run, digits[1])
        assert_close(weights_of(sweep, state.run_id), Checkpoints(run).complete().weights)


def test_everything_that_trials_need_of_the_frozen_part_is_computed_before_they_start(digits):
    sweep = swept(digits, "before", base={**digits[0].base.model_dump(), "preprocessing": "0..1"})
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    survey = actor.survey()
    assert {(request.split, request.unfreeze) for request in survey.requests} == {
        *((split, depth) for split in ("train", "validation") for depth in (0, 1)),
        # A trial of the head alone would be evaluated on it.
        ("test", 0),
    }
    assert survey.flops[1] == survey.flops[2] < survey.flops[3]
    done = actor.extract(survey.requests, 0, 1)
    # One pass for both depths.
    assert done.images == sum(shard.rows for shard in digits[1].shards)
    assert actor.extract(survey.requests, 0, 1).images == 0


def test_parts_of_the_images_that_several_actors_extract_are_all_of_them(digits):
    sweep = swept(digits, "parts", base={**digits[0].base.model_dump(), "preprocessing": "-1..1"})
    actor = TrialActor(sweep, fixed_trials(sweep.config))
    requests = actor.survey().requests
    images = [actor.extract(requests, part, 2).images for part in range(2)]
    assert sum(images) == sum(shard.rows for shard in digits[1].shards)


def test_depths_that_optuna_may_come_to_are_computed_before_it_suggests_any(digits):
    space = {"phases.0.unfreeze": [0, 2], "phases.0.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    sweep = swept(digits, "optuna", {"space": space, "search": "optuna", "trials": 2}, features="always")
    assert {request.unfreeze for request in TrialActor(sweep, None).survey().requests} == {0, 2}


@pytest.mark.proof
def test_where_a_scheduler_may_stop_trials_later_phases_wait(digits):
    sweep = swept(
        digits,
        "lazy",
        {**DEPTHS_AND_RATES, "scheduler": "asha"},
        phases=[
            {"unfreeze": 0, "epochs": 1, "learning_rate": 1e-3},
            {"unfreeze": 2, "epochs": 1, "learning_rate": 1e-3},
        ],
    )
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    assert {request.unfreeze for request in actor.survey().requests} == {0, 1}
    assert actor.advance(trials[0], 2).ended


@pytest.mark.proof
def test_an_actor_that_died_is_replaced_by_one_that_goes_on(digits):
    sweep = swept(digits, "dies", epochs=3)
    trials = fixed_trials(sweep.config)
    for trial in (trials[0], trials[2]):
        first = TrialActor(sweep, trials).advance(trial, 1)
        later = TrialActor(sweep, trials).advance(trial, 3)
        assert later.rows[0] == first.rows[0]
        assert later.ended
    # Another trial of the pack was taken along, and is not trained again.
    before = len(list(sweep.store.list(f"{sweep.folder}/packs")))
    assert TrialActor(sweep, trials).advance(trials[1], 3).ended
    assert len(list(sweep.store.list(f"{sweep.folder}/packs"))) == before


@pytest.mark.proof
def test_a_trial_that_is_stopped_can_go_on_and_the_others_do_not_notice(digits):
    sweep = swept(digits, "stopped", epochs=3)
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    for trial in trials:
        actor.advance(trial, 1)
    actor.stop(trials[0])
    actor.stop(trials[2])
    others = [actor.advance(trial, 3) for trial in (trials[1], trials[3])]
    stopped = [actor.advance(trial, 3) for trial in (trials[0], trials[2])]
    assert all(state.ended and len(state.rows) == 3 for state in [*others, *stopped])
    again = swept(digits, "undisturbed", epochs=3)
    undisturbed = [TrialActor(again, trials).advance(trial, 3) for trial in fixed_trials(again.config)]
    in_order = [stopped[0], others[0], stopped[1], others[1]]
    for state, expected in zip(in_order, undisturbed, strict=True):
        assert_close(weights_of(sweep, state.run_id), weights_of(again, expected.run_id))


def test_a_diverged_trial_says_why_and_takes_no_other_along(digits):
    rates = {"space": {"phases.0.unfreeze": [0, 1], "phases.0.learning_rate": [1e-2, 1e38]}, "search": "grid"}
    sweep = swept(
        digits,
        "diverged",
        rates,
        training={"batch_size": 16},
        phases=[{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-3, "optimizer": "sgd"}],
    )
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    good, bad, other, worse = (actor.advance(trial, 2) for trial in trials)
    assert good.failure is None
    assert other.failure is None
    for state in (bad, worse):
        assert state.ended
        assert "loss became" in state.failure.reason
        assert state.failure.by == "loss"


def test_a_trial_that_runs_out_of_memory_says_what_it_needs_and_takes_no_other_along(digits):
    sizes = {"space": {"training.batch_size": [1 << 52, 16]}, "search": "grid"}
    sweep = swept(digits, "large", sizes)
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    large, fitting = (actor.advance(trial, 2) for trial in trials)
    assert large.ended
    assert f"ran out of memory: Python could not allocate any more. Give a smaller training.batch_size ({1 << 52})" in (
        large.failure.reason
    )
    assert large.failure.by == "memory"
    assert (fitting.failure, len(fitting.rows)) == (None, 2)


@pytest.mark.parametrize("epochs_before", [0, pytest.param(1, marks=pytest.mark.proof)])
def test_a_pack_that_does_not_fit_is_given_up_and_its_trials_go_on_alone(digits, monkeypatch, epochs_before):
    def too_many(*_, **__):
        return np.empty(1 << 52)

    sweep = swept(
        digits, f"pack-{epochs_before}", {"space": {"phases.0.learning_rate": [1e-3, 1e-2]}, "search": "grid"}
    )
    trials = fixed_trials(sweep.config)
    actor = TrialActor(sweep, trials)
    for trial in trials:
        actor.advance(trial, epochs_before)
    monkeypatch.setattr("transfer.training.pack.states_of", too_many)
    first = actor.advance(trials[0], 2)
    assert (first.ended, len(first.rows), first.packed_with, first.failure) == (True, 2, 1, None)
    # Another actor tries the pack no more, and finds what came out of it.
    monkeypatch.undo()
    other = TrialActor(sweep, trials)
    states = [other.advance(trial, 2) for trial in trials]
    assert states[0] == first
    for trial, state in zip(trials, states, strict=True):
        assert (state.ended, len(state.rows), state.packed_with) == (True, 2, 1)
        run = open_run(sweep.store, trial.config, digits[1], run_id=f"alone-{epochs_before}-{trial.number}")
        train(run, digits[1])
        assert_close(weights_of(sweep, state.run_id), Checkpoints(run).complete().weights)


def test_a_branch_goes_on_from_another_trials_weights_with_its_own_values(digits):
    sweep = swept(digits, "branch", {"space": {"phases.0.learning_rate": [1e-3, 1e-2]}, "scheduler": "pbt"}, epochs=3)
    actor = TrialActor(sweep, None)
    first = make_trial(sweep.config, 1, {"phases.0.learning_rate": 1e-2})
    origin = actor.advance(first, 1)
    moved = make_trial(sweep.config, 2, {"phases.0.learning_rate": 1e-3})
    branch = Branch(origin.run_id, origin.checkpoint)
    # With one actor, the other trial may have come to its end before the one that copies it begins.
    assert actor.advance(first, 3).ended
    state = actor.advance(moved, 3, branch)
    assert state.run_id not in {origin.run_id, actor.advance(moved, 1).run_id}
    assert state.rows[0] == origin.rows[0]
    assert [row.learning_rate for row in state.rows] == pytest.approx([1e-2, 1e-3, 1e-3])
    assert state.ended


def test_a_trial_on_another_file_than_the_sweep_began_with_is_refused(digits, tmp_path):
    base = shutil.copy(digits[0].base.model, tmp_path / "base.keras")
    sweep = swept(digits, "replaced", base={"model": str(base), "image_size": 32})
    trials = fixed_trials(sweep.config)
    base.write_bytes(b"another")
    for ask in (TrialActor(sweep, trials).survey, lambda: TrialActor(sweep, trials).advance(trials[0], 1)):
        with pytest.raises(
            BaseChangedError, match=f"is missing here, or is not the one with which sweep `{sweep.id}` began"
        ):
            ask()
