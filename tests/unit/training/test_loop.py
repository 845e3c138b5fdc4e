"""Training a run from its first to its last checkpoint, in this process."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, ingest_some_digits
from tests.replicas import two_replicas
from tests.trained import largest_difference, models_under, train
from transfer.catalog.run import EpochRow, Progress
from transfer.ensure import fit
from transfer.errors import ConfigError, DivergedError, RunBusyError, TrainingError
from transfer.maintenance.features import UsageWatch
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints, assign
from transfer.training.loop import Training
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def configured(digits, **changes):
    source, dataset = digits
    return digits_config(source, str(source.parent / "storage"), **changes), dataset


def new_run(digits, run_id, **changes):
    config, dataset = configured(digits, **changes)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id), dataset


def trained_weights(run, dataset, **options):
    train(run, dataset, **options)
    return Checkpoints(run).complete().weights


@pytest.fixture(scope="module")
def undisturbed(digits):
    """A run trained without interruption, and its final weights."""
    run, dataset = new_run(digits, "undisturbed")
    return run, trained_weights(run, dataset)


@pytest.mark.proof
def test_two_replicas_end_with_the_weights_of_one(digits, undisturbed):
    run, dataset = new_run(digits, "two-replicas")
    strategy = two_replicas()
    assert largest_difference(trained_weights(run, dataset, strategy=strategy), undisturbed[1]) < TOLERANCE


def test_a_batch_that_the_replicas_cannot_share_is_refused(digits):
    run, dataset = new_run(digits, "odd-batch", training={"batch_size": 7})
    with pytest.raises(ConfigError, match="must be divisible by the 2 replicas"):
        train(run, dataset, strategy=two_replicas())


class SimulatedError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(
            {"augmentation": {"flip": "horizontal", "rotation_degrees": 10, "contrast": 0.2}}, marks=pytest.mark.proof
        ),
        pytest.param({"training": {"batch_size": 16, "mixed_precision": "bfloat16"}}, marks=pytest.mark.proof),
    ],
    ids=["plain", "augmented", "bfloat16"],
)
def test_interrupted_and_resumed_is_uninterrupted(digits, changes, request):
    training = {"batch_size": 16, "checkpoint_steps": 3, **changes.get("training", {})}
    changes = {**changes, "training": training}
    whole, dataset = new_run(digits, f"whole-{request.node.callspec.id}", **changes)
    expected = trained_weights(whole, dataset)

    history = Checkpoints(whole).complete().progress.history
    expected_figures = [[row.loss, row.accuracy, row.validation_loss] for row in history]
    run, dataset = new_run(digits, f"cut-{request.node.callspec.id}", **changes)
    checkpoints = Checkpoints(run)
    numbers = Checkpoints(whole).numbers()
    starts = {number: Checkpoints(whole).read(number) for number in numbers[:-1]}
    in_the_middle = next(n for n, c in starts.items() if c.progress.epoch == 1 and c.progress.step > 0)
    between_phases = next(n for n, c in starts.items() if c.progress.phase == 1 and c.progress.step == 0)
    for number in (in_the_middle, between_phases):
        start = starts[number]
        model = train(run, dataset, start=start)
        assert model is not None
        assert largest_difference(checkpoints.complete().weights, expected) < 1e-6
        # Also of the epoch that was interrupted: what was summed up before counts.
        figures = [[row.loss, row.accuracy, row.validation_loss] for row in checkpoints.complete().progress.history]
        np.testing.assert_allclose(figures, expected_figures, rtol=1e-5)


def test_a_failure_in_the_middle_leaves_checkpoints_to_go_on_from(digits, undisturbed):
    run, dataset = new_run(digits, "failing")

    def fail(row: EpochRow) -> None:
        if row.epoch == 1:
            raise SimulatedError

    with pytest.raises(SimulatedError):
        train(run, dataset, on_epoch=fail)
    with pytest.raises(TrainingError, match="is not finished"):
        Checkpoints(run).complete()
    weights = trained_weights(run, dataset, start=Checkpoints(run).newest())
    assert largest_difference(weights, undisturbed[1]) < 1e-6
    assert [row.epoch for row in Checkpoints(run).complete().progress.history] == [0, 1, 2]


def test_each_attempt_is_noted_also_where_a_run_trains_from_pixels(digits):
    run, dataset = new_run(digits, "from-pixels", features={"cache": "never"})
    for attempt in (1, 2):
        Training(run, dataset, shared=models_under(tf.distribute.get_strategy()))
        assert run.uses.numbers()[-1] == attempt
    assert run.id not in {found.id for found in UsageWatch(run.store).look().runs}, "it relies on nothing that is kept"


def test_a_run_that_another_process_finished_is_not_gone_on_with_even_to_its_best_epoch(digits):
    stopping = {"min_delta": 100.0, "patience_epochs": 1}
    phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-3, "early_stopping": stopping}]
    run, dataset = new_run(digits, "two-at-once", phases=phases)
    training = Training(run, dataset, shared=models_under(tf.distribute.get_strategy()))
    training.next_epoch()
    assert training.progress.best_checkpoint == 1
    training.checkpoints.save(5, Progress(complete=True), weights=[], optimizer=[])
    run.store.remove(f"{run.folder}/checkpoints/00000001.json")
    with pytest.raises(RunBusyError, match="checkpoint 5"):
        training.next_epoch()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(digits, undisturbed, caplog):
    run, dataset = new_run(digits, "damaged")
    trained_weights(run, dataset)
    checkpoints = Checkpoints(run)
    newest = run.checkpoints.read(checkpoints.numbers()[-1])
    path = next(open_store(run.config.storage).list(f"{run.folder}/arrays/{newest['weights']}"))
    file = run.store.uri.removeprefix("file://") + "/" + path.name
    with Path(file).open("r+b") as damaged:
        damaged.seek(200)
        byte = damaged.read(1)
        damaged.seek(200)
        damaged.write(bytes([byte[0] ^ 1]))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest()
    assert found.number == checkpoints.numbers()[-2]
    assert "is damaged" in caplog.text


def test_the_frozen_part_is_not_stored_with_the_checkpoint(digits, undisturbed):
    run, weights = undisturbed
    model, _ = restore_model(run, digits[1])
    assert sum(w.size for w in weights) < sum(np.prod(v.shape) for v in model.backbone.network.variables)


def test_a_restored_model_has_the_trained_weights_and_the_pretrained_rest(digits, undisturbed):
    run, weights = undisturbed
    model, _ = restore_model(run, digits[1])
    again, _ = restore_model(run, digits[1])
    for depth in (0, 1):
        assert (
            largest_difference(
                [np.asarray(v) for v in model.cut(depth).variables],
                [np.asarray(v) for v in again.cut(depth).variables],
            )
            == 0
        )
    trained = [np.asarray(v) for v in model.variables_of(run.config.phases)]
    assert largest_difference(trained, weights) == 0


def test_early_stopping_goes_back_to_the_best_epoch(digits):
    phases = [
        {
            "unfreeze": 0,
            "epochs": 30,
            "learning_rate": 0.3,
            "early_stopping": {"metric": "loss", "patience_epochs": 2},
        }
    ]
    run, dataset = new_run(digits, "early", phases=phases)
    weights = trained_weights(run, dataset)
    final = Checkpoints(run).complete()
    losses = [row.validation_loss for row in final.progress.history]
    assert len(losses) < 30
    best = int(np.argmin(losses))
    assert best == len(losses) - 3
    # The best epoch's own checkpoint holds the weights that the phase ended with.
    assert largest_difference(weights, Checkpoints(run).read(best + 1).weights) == 0


def test_losses_are_exact_means_whatever_the_batch_size(digits):
    """The last batch is short; neither its filling nor its size may bias the epoch's figures."""
    frozen = [{"unfreeze": 0, "epochs": 1, "learning_rate": 1e-12}]
    figures = []
    for size in (7, 16, 1000):
        run, dataset = new_run(
            digits, f"batch-{size}", phases=frozen, training={"batch_size": size}, head={"dropout": 0.0}
        )
        train(run, dataset)
        (row,) = Checkpoints(run).complete().progress.history
        figures.append((row.loss, row.accuracy, row.validation_loss, row.validation_accuracy))
    np.testing.assert_allclose(figures[1:], [figures[0]] * 2, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(digits):
    phases = [{"unfreeze": 0, "epochs": 5, "learning_rate": 1e38, "optimizer": "sgd"}]
    run, dataset = new_run(digits, "diverging", phases=phases)
    with pytest.raises(DivergedError, match="Lower the phase's learning_rate"):
        train(run, dataset)


def test_tensorboard_gets_training_and_validation_under_the_same_tags(digits, undisturbed):
    run, _ = undisturbed
    folder = Path(run.store.uri.removeprefix("file://"), run.folder, "tensorboard")
    found = {}
    for file in sorted(folder.glob("*/*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault((file.parent.name, value.tag), []).append((event.step, value.simple_value))
    history = Checkpoints(run).complete().progress.history
    expected = {
        ("train", "epoch_loss"): [(row.epoch, row.loss) for row in history],
        ("train", "epoch_accuracy"): [(row.epoch, row.accuracy) for row in history],
        ("train", "learning_rate"): [(row.epoch, row.learning_rate) for row in history],
        ("validation", "epoch_loss"): [(row.epoch, row.validation_loss) for row in history],
        ("validation", "epoch_accuracy"): [(row.epoch, row.validation_accuracy) for row in history],
    }
    assert found.keys() == expected.keys()
    for name, figures in found.items():
        np.testing.assert_allclose(figures, expected[name], rtol=1e-6)


def test_arrays_that_do_not_fit_the_network_are_refused(undisturbed):
    with pytest.raises(TrainingError, match="do not fit"):
        assign([], undisturbed[1])


@pytest.mark.proof
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_trained_to_its_end_again(digits, undisturbed, caplog):
    run, dataset = new_run(digits, "damaged-at-its-end")
    fit(run, dataset)
    numbers = Checkpoints(run).numbers()
    assert numbers[-1] == 3
    arrays = Path(run.store.uri, run.folder, "arrays", f"{run.checkpoints.read(numbers[-1])['weights']}.npz")
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        fit(run, dataset)
    assert "is damaged" in caplog.text
    assert Checkpoints(run).numbers()[-1] > 3
    assert largest_difference(Checkpoints(run).complete().weights, undisturbed[1]) < 1e-6
