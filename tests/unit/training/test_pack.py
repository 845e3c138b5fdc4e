"""Trials that are trained side by side each learn what they would learn alone."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, hold_out, ingest_some_digits, write_some_digits
from tests.trained import build_model, train
from transfer.dataset.ingest import ingest
from transfer.errors import ConfigError, TrainingError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.feature_plan import FeaturePlan
from transfer.training.model import build_head
from transfer.training.pack import Pack
from transfer.training.pack_head import Trials, build_pack_head
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model
from transfer.tuning.plan import pack_key

SAME = 1e-5
EPOCHS = 2


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def nine_digits(tmp_path_factory):
    """Digits of which one class is only validated and tested on."""
    source, dataset = ingest_some_digits(tmp_path_factory.mktemp("nine"))
    return source, hold_out(source, dataset, "3")


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
        **{"features": "always", **sections},
    )


def with_changes(common, changes):
    """Sections of `common` with those of one trial put in."""
    return {section: {**common.get(section, {}), **changes.get(section, {})} for section in sorted({*common, *changes})}


def new_run(digits, run_id, config):
    return open_run(open_store(config.storage), config, digits[1], run_id=run_id)


def new_runs(digits, name, common, trials):
    """A run of each trial, with ids that begin with `name`."""
    configs = [configured(digits, **with_changes(common, trial)) for trial in trials]
    assert len({pack_key(config) for config in configs}) == 1
    return [new_run(digits, f"{name}-{number}", config) for number, config in enumerate(configs)]


def pack_of(digits, runs, *, folder=None):
    _, dataset = digits
    inputs = FeaturePlan(runs[0], dataset, build_model(runs[0].config, dataset.classes))
    inputs.extract()
    return Pack(runs, dataset, inputs.open(0), folder=folder or f"sweeps/s/packs/{runs[0].id}")


def trained_together(digits, runs, **options):
    pack = pack_of(digits, runs, **options)
    while pack.live:
        pack.next_epoch()
    return pack


def trained_alone(digits, run):
    """The same run again, on its own."""
    alone = new_run(digits, f"{run.id}-alone", run.config)
    train(alone, digits[1])
    return Checkpoints(alone).complete()


def relative_difference(left, right):
    """Largest difference in any array, relative to the largest weight in it."""
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in zip(left, right, strict=True))


def assert_same_history(found, expected, dataset):
    def figures(*names):
        return [np.array([[getattr(row, name) for name in names] for row in rows], float) for rows in (found, expected)]

    np.testing.assert_allclose(*figures("phase", "epoch", "loss", "validation_loss", "learning_rate"), rtol=SAME)
    for name, split in (("accuracy", "train"), ("validation_accuracy", "validation")):
        # One image may be a draw between two classes.
        np.testing.assert_allclose(*figures(name), atol=1.01 / max(dataset.rows(split), 1), rtol=0)


def assert_as_alone(digits, run):
    """The run ended as it does on its own."""
    found, expected = Checkpoints(run).complete(), trained_alone(digits, run)
    assert relative_difference(found.weights, expected.weights) < SAME
    assert_same_history(found.progress.history, expected.progress.history, digits[1])
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
RATES = [{"phase": {"learning_rate": rate}, "head": {"dropout": 0.0}} for rate in (1e-1, 1e-3)]
DECAYS = [{"phase": {"optimizer": {"name": "adamw", "weight_decay": decay}}} for decay in (0.0, 0.5)]
SGD = {"name": "sgd", "momentum": 0.9, "nesterov": True}
WARM = {"schedule": {"kind": "cosine", "warmup_epochs": 0.5}}
REST = {
    "phase": {"optimizer": {**SGD, "clip_norm": 0.05}, "schedule": {"kind": "exponential"}},
    "head": {"hidden": [16, 8]},
    "training": {"class_weights": "balanced"},
}


@pytest.mark.parametrize(
    ("common", "trials"),
    [
        ({}, WHAT_MAY_DIFFER),
        pytest.param({"phase": {"optimizer": "adamw", **WARM}}, DECAYS, marks=pytest.mark.proof),
        pytest.param(REST, THREE, marks=pytest.mark.proof),
    ],
    ids=["keys", "adamw", "rest"],
)
def test_each_trial_of_a_pack_ends_as_it_would_alone(nine_digits, common, trials, request):
    assert nine_digits[1].rows("train") % 20, "the last batch is to be short"
    runs = new_runs(nine_digits, request.node.callspec.id, common, trials)
    trained_together(nine_digits, runs)
    for run in runs:
        assert_as_alone(nine_digits, run)


@pytest.mark.parametrize(
    ("head", "shape", "untrained"),
    [({}, (3, 3, 2), (1,)), ({"output": "sigmoid"}, (5,), ()), ({"hidden": [4]}, (5,), ())],
    ids=["flattened-untrained", "sigmoid", "hidden"],
)
def test_the_head_of_a_pack_answers_what_the_heads_of_its_trials_answer(digits, head, shape, untrained):
    configs = [configured(digits, head={**head, "l2": l2}) for l2 in (0.0, 0.1, 0.2)]
    heads = [
        build_head(each.head, feature_shape=shape, class_count=2, seed=seed, untrained=untrained)
        for seed, each in enumerate(configs)
    ]
    weights = [[np.array(variable) for variable in each.trainable_variables] for each in heads]
    pack = build_pack_head(heads[0], Trials(configs), weights)
    features = np.random.default_rng(0).normal(size=(7, *shape)).astype(np.float32)
    for found, each in zip(pack(features[np.newaxis]), heads, strict=True):
        np.testing.assert_allclose(found, each(features), rtol=1e-5, atol=1e-6)
    penalties = itertools.chain.from_iterable(each.losses for each in heads)
    assert float(sum(pack.losses)) == pytest.approx(float(sum(penalties)))


def test_early_stopping_without_a_validation_split_is_refused(digits_to_train_on_only):
    common = {"phase": {"early_stopping": {"patience_epochs": 1}}}
    pack = pack_of(digits_to_train_on_only, new_runs(digits_to_train_on_only, "unwatched", common, RATES))
    with pytest.raises(ConfigError, match="early_stopping needs a validation split"):
        pack.next_epoch()


PATIENT = {"phase": {"epochs": 8, "early_stopping": {"metric": "loss", "patience_epochs": 2}}}


@pytest.mark.proof
def test_a_trial_that_stops_early_goes_back_to_its_best_epoch_while_others_go_on(digits):
    runs = new_runs(digits, "early", PATIENT, [{"phase": {"learning_rate": rate}} for rate in (0.05, 1e-3)])
    pack = trained_together(digits, runs)
    hasty, steady = (len(pack.histories[run.id]) for run in runs)
    assert hasty < steady == 8
    for run in runs:
        assert_as_alone(digits, run)


def diverging(digits, name, **common):
    """Three runs, of which the second diverges in its first step."""
    common = {"phase": {"optimizer": "sgd", "epochs": 3}, **common}
    return new_runs(digits, name, common, [{"phase": {"learning_rate": rate}} for rate in (1e-2, 1e38, 3e-2)])


@pytest.mark.parametrize("dataset", ["digits", pytest.param("digits_to_train_on_only", marks=pytest.mark.proof)])
def test_a_trial_that_diverges_fails_and_leaves_the_others_as_they_are(dataset, request):
    digits = request.getfixturevalue(dataset)
    runs = diverging(digits, "diverging")
    pack = pack_of(digits, runs)
    pack.next_epoch()
    assert pack.live == [runs[0].id, runs[2].id]
    assert list(pack.failures) == [runs[1].id]
    assert "Lower the phase's learning_rate" in str(pack.failures[runs[1].id])
    while pack.live:
        pack.next_epoch()
    assert_as_alone(digits, runs[0])
    assert_as_alone(digits, runs[2])
    assert Checkpoints(runs[1]).numbers() == []


def test_a_trial_that_diverges_in_the_last_step_of_an_epoch_is_found_out_in_validation(digits):
    runs = diverging(digits, "diverging-late", training={"batch_size": 1000})
    pack = pack_of(digits, runs)
    pack.next_epoch()
    assert pack.live == [runs[0].id, runs[2].id]
    assert list(pack.failures) == [runs[1].id]


def test_trials_that_are_stopped_leave_the_others_as_they_are(digits):
    """Also when the stack is made anew without the stopped ones."""
    trials = [{"training": {"seed": number % 2}, "head": {"dropout": 0.1 * number}} for number in range(6)]
    runs = new_runs(digits, "stopped", {"phase": {"epochs": 4}}, trials)
    pack = pack_of(digits, runs)
    pack.next_epoch()
    sizes, gone = [], set()
    for stopped in (runs[:1], runs[1:4], runs[4:5]):
        for run in stopped:
            pack.stop(run.id)
            gone.add(run.id)
        assert pack.live == [run.id for run in runs if run.id not in gone]
        pack.next_epoch()
        sizes.append(len(pack._engine.members))
    assert sizes == [6, 2, 2]
    assert_as_alone(digits, runs[5])
    assert [len(pack.histories[run.id]) for run in runs] == [1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize(
    "min_delta",
    [0.0, pytest.param(0.4, marks=pytest.mark.proof), pytest.param(10.0, marks=pytest.mark.proof)],
    ids=["each-epoch-better", "second-best", "first-best"],
)
def test_a_stopped_trial_can_go_on_alone_to_where_it_would_have_come(digits, min_delta):
    stopping = {"metric": "loss", "patience_epochs": 3, "min_delta": min_delta}
    runs = new_runs(digits, f"going-on-{min_delta:g}", {"phase": {"epochs": 3, "early_stopping": stopping}}, THREE)
    pack = pack_of(digits, runs)
    pack.next_epoch()
    pack.next_epoch()
    for run in runs[1:]:
        pack.stop(run.id)
        with pytest.raises(TrainingError, match="is not finished"):
            Checkpoints(run).complete()
        train(run, digits[1], start=Checkpoints(run).newest())
        assert_as_alone(digits, run)


@pytest.mark.parametrize(
    ("optimizer", "min_delta"),
    [("adam", 0.0), pytest.param(SGD, 10.0, marks=pytest.mark.proof)],
    ids=["adam-later-epochs-better", "sgd-first-epoch-best"],
)
def test_a_pack_that_was_killed_goes_on_as_if_it_had_not_been(digits, optimizer, min_delta, request):
    stopping = {"metric": "loss", "patience_epochs": 3, "min_delta": min_delta}
    common = {"phase": {"optimizer": optimizer, "epochs": 6, "early_stopping": stopping}}
    rates = [{"phase": {"learning_rate": rate}, "training": {"seed": seed}} for seed, rate in enumerate((0.05, 1e-2))]
    name = f"killed-{request.node.callspec.id}"
    whole = trained_together(digits, new_runs(digits, f"{name}-whole", common, rates))
    runs = new_runs(digits, name, common, rates)
    for _ in range(2):
        pack_of(digits, runs).next_epoch()
    pack = trained_together(digits, runs)
    for run, expected in zip(runs, whole.histories, strict=True):
        assert [row.loss for row in pack.histories[run.id]] == [row.loss for row in whole.histories[expected]]
        of_whole = new_run(digits, expected, run.config)
        weights = [Checkpoints(each).complete().weights for each in (run, of_whole)]
        assert relative_difference(*weights) < 1e-6


@pytest.mark.proof
def test_a_pack_that_was_killed_goes_on_with_some_of_its_trials(digits):
    runs = new_runs(digits, "fewer", {}, THREE)
    pack_of(digits, runs, folder="sweeps/s/packs/fewer").next_epoch()
    pack = pack_of(digits, runs[1:], folder="sweeps/s/packs/fewer")
    assert [len(rows) for rows in pack.histories.values()] == [1, 1]
    while pack.live:
        pack.next_epoch()
    assert_as_alone(digits, runs[2])


@pytest.mark.proof
def test_a_pack_with_a_trial_that_its_checkpoint_lacks_begins_anew(digits):
    runs = new_runs(digits, "more", {}, THREE)
    pack_of(digits, runs[:2], folder="sweeps/s/packs/more").next_epoch()
    pack = trained_together(digits, runs, folder="sweeps/s/packs/more")
    assert {len(rows) for rows in pack.histories.values()} == {EPOCHS}
    assert_as_alone(digits, runs[0])


@pytest.mark.proof
def test_a_run_that_was_finished_before_is_not_trained_again(digits):
    runs = new_runs(digits, "before", {}, RATES)
    train(runs[0], digits[1])
    pack = pack_of(digits, runs)
    assert pack.live == [runs[1].id]
    assert pack.histories[runs[0].id] == Checkpoints(runs[0]).complete().progress.history
    while pack.live:
        pack.next_epoch()
    assert_as_alone(digits, runs[1])


@pytest.mark.proof
def test_failed_stopped_and_finished_trials_stay_what_they_are_after_a_restart(digits):
    runs = diverging(digits, "restarted")
    pack = pack_of(digits, runs)
    pack.next_epoch()
    pack.stop(runs[2].id)
    pack.next_epoch()
    again = pack_of(digits, runs)
    assert again.live == [runs[0].id]
    assert {run_id: str(error) for run_id, error in again.failures.items()} == {
        runs[1].id: str(pack.failures[runs[1].id])
    }
    assert again.histories == pack.histories
    again.next_epoch()
    pack_of(digits, runs).next_epoch()
    assert [len(rows) for rows in again.histories.values()] == [3, 0, 1]
    assert Checkpoints(runs[0]).numbers() == [1]


@pytest.mark.proof
def test_a_trial_that_had_ended_when_its_pack_was_killed_is_not_written_twice(digits, monkeypatch):
    runs = new_runs(digits, "killed-late", {"phase": {"epochs": 1}}, RATES)
    pack = pack_of(digits, runs)
    monkeypatch.setattr(pack._checkpoints, "save", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack.next_epoch()
    weights = Checkpoints(runs[0]).complete().weights
    trained_together(digits, runs)
    assert [Checkpoints(run).numbers() for run in runs] == [[1], [1]]
    assert relative_difference(Checkpoints(runs[0]).complete().weights, weights) == 0


def raise_interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.proof
def test_a_damaged_checkpoint_of_a_pack_is_passed_over(digits, caplog):
    runs = new_runs(digits, "damaged-pack", {"phase": {"epochs": EPOCHS + 1}}, RATES)
    pack = pack_of(digits, runs)
    pack.next_epoch()
    pack.next_epoch()
    folder = digits[0].parent / "storage" / "sweeps" / "s" / "packs" / runs[0].id
    (folder / "checkpoints" / "00000002.json").write_text("{}")
    again = pack_of(digits, runs)
    assert "Checkpoint 2 of pack" in caplog.text
    assert [len(rows) for rows in again.histories.values()] == [1, 1]
    while again.live:
        again.next_epoch()
    # What its trials came to is in their runs: of the pack one checkpoint stays, with its arrays.
    assert [len(list((folder / kind).iterdir())) for kind in ("checkpoints", "arrays")] == [1, 1]


def test_a_finished_trial_is_a_finished_run(digits):
    runs = new_runs(digits, "finished", {"training": {"seed": 5}}, RATES)
    pack = trained_together(digits, runs)
    for run in runs:
        model, checkpoint = restore_model(run, digits[1])
        trained = [np.asarray(variable) for variable in model.head.trainable_variables]
        assert relative_difference(trained, checkpoint.weights) == 0
        (file,) = run.store.list(f"{run.folder}/tensorboard/train")
        path = f"{run.store.uri.removeprefix('file://')}/{file.name}"
        events = [event for event in tf.compat.v1.train.summary_iterator(path) if event.summary.value]
        losses = [v.simple_value for event in events for v in event.summary.value if v.tag == "epoch_loss"]
        np.testing.assert_allclose(losses, [row.loss for row in pack.histories[run.id]], rtol=1e-6)
