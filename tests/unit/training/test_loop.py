"""Training a run from its first to its last checkpoint, in this process."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, ingest_some_digits
from tests.one_process import largest_difference
from tests.replicas import two_replicas
from tests.workbench import train
from transfer.errors import ConfigError, DivergedError, TrainingError
from transfer.steps import fit
from transfer.storage import open_store
from transfer.training.balance import class_weights
from transfer.training.checkpoints import Checkpoints, assign
from transfer.training.history import EpochRow
from transfer.training.restore import restore_model
from transfer.training.run import open_run

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


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(digits, undisturbed, caplog):
    run, dataset = new_run(digits, "damaged")
    trained_weights(run, dataset)
    checkpoints = Checkpoints(run)
    newest = run.checkpoints.read(checkpoints.numbers()[-1])
    path = next(open_store(run.config.storage).list(f"{run.prefix}/arrays/{newest['weights']}"))
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
                [np.asarray(v) for v in model.split(depth).variables],
                [np.asarray(v) for v in again.split(depth).variables],
            )
            == 0
        )
    trained = [np.asarray(v) for v in model.variables_of([0, 1])]
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


def test_event_files_are_written_for_every_epoch(digits, undisturbed):
    run, _ = undisturbed
    files = list(run.store.list(f"{run.prefix}/tensorboard"))
    assert len(files) == 3
    folder = run.store.uri.removeprefix("file://")
    tags = set()
    for file in files:
        for event in tf.compat.v1.train.summary_iterator(f"{folder}/{file.name}"):
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch_loss/train", "epoch_accuracy/validation", "learning_rate"} <= tags


def test_class_weights_by_name_must_name_classes(digits):
    _, dataset = digits
    assert class_weights({"3": 2.0}, dataset)[3] == 2.0
    assert class_weights("none", dataset).tolist() == [1.0] * 10
    with pytest.raises(ConfigError, match="which are no classes"):
        class_weights({"cat": 2.0}, dataset)


def test_arrays_that_do_not_fit_the_network_are_refused(undisturbed):
    with pytest.raises(TrainingError, match="do not fit"):
        assign([], undisturbed[1])


@pytest.mark.proof
def test_a_finished_run_whose_last_checkpoint_is_damaged_is_trained_to_its_end_again(digits, undisturbed, caplog):
    run, dataset = new_run(digits, "damaged-at-its-end")
    fit(run, dataset)
    numbers = Checkpoints(run).numbers()
    arrays = Path(run.store.uri, run.prefix, "arrays", f"{run.checkpoints.read(numbers[-1])['weights']}.npz")
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        fit(run, dataset)
    assert "is damaged" in caplog.text
    assert Checkpoints(run).numbers() == [*numbers, numbers[-1] + 1]
    assert largest_difference(Checkpoints(run).complete().weights, undisturbed[1]) < 1e-6
