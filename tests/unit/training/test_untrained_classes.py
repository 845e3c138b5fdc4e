"""Classes without training images are never answered: what is learned beside them, and what comes of a run."""

import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.digits import digits_config, hold_out, ingest_some_digits
from tests.published import add_version, provenance_of
from tests.reports import load_report
from tests.sourcing import config_of, write_classes
from tests.trained import largest_difference, models_under, train
from transfer.catalog.run import Progress
from transfer.config import HeadConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import load_dataset
from transfer.evaluation.evaluate import evaluate_run
from transfer.evaluation.units import first_images
from transfer.registry.export import export
from transfer.registry.export_proof import LOADERS, TOLERANCE
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoint, Checkpoints
from transfer.training.loop import Training
from transfer.training.model import build_head, untrained_in
from transfer.training.rows import Fold, untrained_classes
from transfer.training.run import open_run
from transfer.training.shared_models import restore_model
from transfer.training.step import cross_entropy

CLASS = 3
"""Index, and name, of the digit that is only validated and tested on."""
OTHERS = [digit for digit in range(10) if digit != CLASS]
LOSS = -math.log(1e-7)
"""Of an image of a class that is never answered."""


def new_run(digits, run_id, *, fold=None, optimizer="adam", **changes):
    source, dataset = digits
    phases = [{"unfreeze": 0, "epochs": 2, "learning_rate": 1e-2, "optimizer": optimizer}]
    sections = {"phases": phases, "features": "always", **changes}
    config = digits_config(source, str(source.parent / "storage"), **sections)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id, fold=fold)


def begun(run, dataset):
    """A run that has not taken a step."""
    return Training(run, dataset, shared=models_under(tf.distribute.get_strategy()))


def trained(run, dataset, **options):
    train(run, dataset, **options)
    return Checkpoints(run).complete()


def first_weights(run, dataset):
    return [np.array(variable) for variable in begun(run, dataset).weights]


@pytest.fixture(scope="module")
def nine_digits(tmp_path_factory):
    """Digits of which one class lost its training images after they had been brought to a store."""
    source, dataset = ingest_some_digits(tmp_path_factory.mktemp("digits"))
    return source, hold_out(source, dataset, str(CLASS))


@pytest.fixture(scope="module")
def evaluated(nine_digits):
    """A run on them, and its report and predictions."""
    run = new_run(nine_digits, "evaluated")
    train(run, nine_digits[1])
    return run, *load_report(run, evaluate_run(run, nine_digits[1]))


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_masked_class_has_probability_zero_whatever_its_weights_and_these_get_no_gradient(output):
    head = build_head(HeadConfig(output=output), feature_shape=(4,), class_count=2, seed=0, untrained=[1])
    kernel, bias = head.trainable_variables
    kernel.assign(np.linspace(1e4, 2e4, 4 * kernel.shape[1]).reshape(4, -1))
    with tf.GradientTape() as tape:
        logits = head(tf.ones((3, 4)), training=False)
        loss = cross_entropy(tf.zeros(3, tf.int32), logits, smoothing=0.1, untrained=[1])
    assert tf.nn.softmax(logits).numpy().tolist() == [[1.0, 0.0]] * 3
    gradients = tape.gradient(loss, [kernel.value, bias.value])
    assert all(np.all(gradient.numpy()[..., -1] == 0) for gradient in gradients)


def test_a_head_of_trained_classes_has_no_layer_more_and_a_masked_one_no_weight_more():
    plain, masked = (
        build_head(HeadConfig(), feature_shape=(4,), class_count=3, seed=0, untrained=untrained)
        for untrained in ((), (1,))
    )
    assert [layer.name for layer in plain.layers] == ["features", "dropout_0", "logits", "logits_float32"]
    for one, other in zip(plain.weights, masked.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_loss_beside_a_masked_class_is_that_without_it_and_one_number_for_its_own_images():
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    masked = np.insert(logits, 1, -1e9, axis=1)
    found = cross_entropy(tf.constant([0, 1, 2, 3]), tf.constant(masked), smoothing=0.2, untrained=[1])
    expected = cross_entropy(tf.constant([0, 0, 1, 2]), tf.constant(logits), smoothing=0.2)
    np.testing.assert_allclose(found.numpy()[[0, 2, 3]], expected.numpy()[[0, 2, 3]], rtol=1e-6)
    assert found.numpy()[1] == pytest.approx(LOSS)


def test_the_other_classes_learn_what_they_learn_without_it_within_1e_6(nine_digits, tmp_path):
    """From the same first weights. All of the class's images are mistakes, each with the same loss."""
    changes = {
        "optimizer": {"name": "adamw", "clip_norm": 0.5},
        "head": {"hidden": [8], "dropout": 0.2},
        "training": {"batch_size": 16, "label_smoothing": 0.1, "class_weights": "balanced"},
    }
    run = new_run(nine_digits, "beside", **changes)
    first = first_weights(run, nine_digits[1])
    found = trained(run, nine_digits[1])

    source = shutil.copytree(nine_digits[0], tmp_path / "images")
    shutil.rmtree(source / str(CLASS))
    alone = digits_config(source, str(tmp_path / "storage"))
    without = source, ingest(alone, open_store(alone.storage))
    of_others = [*first[:-2], first[-2][:, OTHERS], first[-1][OTHERS]]
    start = Checkpoint(number=0, progress=Progress(), weights=of_others, optimizer=[])
    expected = trained(new_run(without, "without", **changes), without[1], start=start)

    *hidden, kernel, bias = found.weights
    assert largest_difference([*hidden, kernel[:, OTHERS], bias[OTHERS]], expected.weights) < 1e-6
    images, of_class = nine_digits[1].rows("validation"), nine_digits[1].counts["validation"][str(CLASS)]
    assert of_class
    for row, other in zip(found.progress.history, expected.progress.history, strict=True):
        assert row.loss == pytest.approx(other.loss, rel=1e-6)
        assert row.accuracy == other.accuracy
        share = of_class / images
        assert row.validation_loss == pytest.approx((1 - share) * other.validation_loss + share * LOSS, rel=1e-5)
        assert row.validation_accuracy == pytest.approx((1 - share) * other.validation_accuracy)


def test_the_report_counts_its_images_as_mistakes_and_names_it(nine_digits, evaluated):
    _, dataset = nine_digits
    _, report, predictions = evaluated
    assert dataset.counts["train"][str(CLASS)] == 0 < dataset.counts["test"][str(CLASS)]
    assert report.untrained_classes == (str(CLASS),)
    assert np.all(predictions.probabilities[:, CLASS] == 0)
    row = report.metrics.per_class[CLASS]
    assert (row.support, row.predicted, row.recall) == (dataset.counts["test"][str(CLASS)], 0, 0.0)
    is_of_class = predictions.labels == CLASS
    own = predictions.probabilities[~is_of_class, predictions.labels[~is_of_class]]
    expected = (np.sum(is_of_class) * LOSS - np.sum(np.log(own))) / len(predictions.labels)
    assert report.metrics.loss == pytest.approx(expected, rel=1e-5)


# Publishing asks each loader, too, and tests/system/registry publishes such a model.
@pytest.mark.thorough
def test_the_exported_model_never_answers_it_asked_by_any_loader(nine_digits, evaluated, tmp_path):
    _, dataset = nine_digits
    run, _, predictions = evaluated
    model, _ = restore_model(run, dataset)
    export(model, tmp_path / "model", provenance={})
    images = first_images(run.store, dataset.shards_of("test"), 16)
    for loader in LOADERS:
        answers = loader.answers(tmp_path / "model", [images])
        assert np.abs(answers - predictions.probabilities[:16]).max() <= TOLERANCE
        assert np.all(answers[:, CLASS] == 0)
    described = json.loads((tmp_path / "model/assets.extra/transfer.json").read_text())
    assert described["classes"] == dataset.classes
    assert described["untrained_classes"] == [str(CLASS)]


def test_a_head_is_taken_over_when_a_class_loses_its_images_and_when_it_gets_them_back(nine_digits, tmp_path):
    source, nine = nine_digits
    ten = load_dataset(open_store(new_run(nine_digits, "any").config.storage), nine.name, nine.parent)
    weights, changes = None, {}
    for run_id, dataset, untrained in (("first", ten, ()), ("loses", nine, (CLASS,)), ("gets back", ten, ())):
        run = new_run((source, dataset), run_id.replace(" ", "-"), **changes)
        training = begun(run, dataset)
        assert untrained_in(training.model.head) == untrained
        found = [np.array(variable) for variable in training.weights]
        if weights:
            assert largest_difference(found, weights) == 0
        weights = [value + 1 for value in found]
        Checkpoints(run).save(1, Progress(complete=True), weights=weights, optimizer=[])
        exported = tmp_path / run.id
        exported.mkdir()
        (exported / "saved_model.pb").write_bytes(b"graph")
        provenance = provenance_of(run.id, dataset.reference)
        version = add_version(run.store, "digits", exported, classes=dataset.classes, provenance=provenance)
        changes = {"training": {"batch_size": 16, "warm_start": f"digits/{version.number}"}}


def test_a_fold_masks_what_it_does_not_train_on_and_nothing_else(nine_digits, folder_storage, tmp_path):
    source = write_classes(tmp_path / "images", ant=1, cat=20, dog=20)
    config = config_of(source, folder_storage, min_images_per_class=1)
    store = open_store(config.storage)
    rare = ingest(config, store)
    assert sorted(untrained_classes(store, rare, Fold(index, 3)) for index in range(3)) == [(), (), (0,)]
    # Folds are made of the validation split, too.
    fold = Fold(0, 3)
    runs = [new_run(nine_digits, "masks", fold=each) for each in (None, fold)]
    assert [untrained_in(begun(run, nine_digits[1]).model.head) for run in runs] == [(CLASS,), ()]
