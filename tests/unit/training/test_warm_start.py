"""A run that begins with the head of a published version, and what it refuses to begin with."""

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tests.digits import digits_config, ingest_some_digits
from tests.published import add_version, provenance_of
from tests.replicas import two_replicas
from tests.trained import build_model, largest_difference, measure_curve, models_under, train
from transfer.catalog.run import Progress
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import dataset_log
from transfer.errors import ConfigError
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.feature_plan import FeaturePlan
from transfer.training.loop import Training
from transfer.training.pack import Pack
from transfer.training.rows import Fold
from transfer.training.run import open_run
from transfer.training.warm_start import taken_over, warm_start
from transfer.tuning.lr_find import range_test_of
from transfer.tuning.space import check_space

STILL = 1e-12
"""A learning rate at which nothing changes."""
ONE_EPOCH = {"unfreeze": 0, "epochs": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def configured(digits, *, phase=None, training=None, **changes):
    sections = {
        "phases": [{**ONE_EPOCH, **(phase or {})}],
        "training": {"batch_size": 16, **(training or {})},
        "features": "always",
        **changes,
    }
    return digits_config(digits[0], str(digits[0].parent / "storage"), **sections)


def new_run(digits, run_id, *, fold=None, **changes):
    config = configured(digits, **changes)
    return open_run(open_store(config.storage), config, digits[1], run_id=run_id, fold=fold)


def warm(reference, **training):
    return {"training": {"warm_start": reference, **training}}


def published(run, dataset, *, classes=None):
    """A version that came from a run, named as configurations do; its files do not matter here."""
    exported = Path(run.store.uri).parent / "exported"
    exported.mkdir(exist_ok=True)
    (exported / "saved_model.pb").write_bytes(b"graph")
    provenance = provenance_of(run.id, dataset.reference)
    version = add_version(run.store, "digits", exported, classes=classes or dataset.classes, provenance=provenance)
    return f"digits/{version.number}"


def published_head(digits, run_id, *shapes, **changes):
    """A version with a head of these shapes and random weights, and those weights; nothing was trained for it."""
    run = new_run(digits, run_id, **changes)
    random = np.random.default_rng(0)
    weights = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    Checkpoints(run).save(1, Progress(complete=True), weights=weights, optimizer=[])
    return published(run, digits[1]), weights


def begun(run, dataset, **options):
    """The head of a run that has not taken a step: kernel and bias of each dense layer."""
    training = Training(run, dataset, shared=models_under(tf.distribute.get_strategy()), **options)
    return [np.array(variable) for variable in training.model.head.trainable_variables]


def trained(run, dataset, strategy=None):
    train(run, dataset, strategy=strategy)
    return Checkpoints(run).complete()


@pytest.fixture(scope="module")
def champion(digits):
    """A trained version by name, and the last checkpoint of its run. Its base was trained, too."""
    phases = [{**ONE_EPOCH, "epochs": 3, "learning_rate": 1e-2}, {**ONE_EPOCH, "unfreeze": 1, "learning_rate": STILL}]
    run = new_run(digits, "champion", phases=phases)
    checkpoint = trained(run, digits[1])
    return published(run, digits[1]), checkpoint


@pytest.fixture(scope="module")
def features(champion):
    """How many features the head reads."""
    return champion[1].weights[-2].shape[0]


def test_the_first_steps_have_the_loss_of_the_champion(digits, champion):
    reference, checkpoint = champion
    run = new_run(digits, "still", phase={"learning_rate": STILL}, **warm(reference))
    (row,) = trained(run, digits[1]).progress.history
    last = checkpoint.progress.history[-1]
    assert row.validation_loss == pytest.approx(last.validation_loss, rel=1e-4)
    assert row.loss == pytest.approx(last.loss, rel=0.2), "dropout"


def test_classes_that_are_known_keep_their_weights_and_a_new_one_begins_afresh(digits, champion, tmp_path):
    reference, checkpoint = champion
    storage = shutil.copytree(digits[0].parent / "storage", tmp_path / "storage")
    source = shutil.copytree(digits[0], tmp_path / "images")
    shutil.copytree(source / "3", source / "another")
    for image in (source / "another").iterdir():
        ImageOps.invert(Image.open(image)).save(image)
    config = digits_config(source, str(storage), phases=[ONE_EPOCH], **warm(reference, batch_size=16))
    dataset = ingest(config, open_store(config.storage))
    assert dataset.classes[-1] == "another"
    kernel, bias = begun(open_run(open_store(config.storage), config, dataset), dataset)
    np.testing.assert_array_equal(kernel[:, :10], checkpoint.weights[-2])
    np.testing.assert_array_equal(bias[:10], checkpoint.weights[-1])
    first = build_model(config, dataset.classes).head.trainable_variables[0]
    np.testing.assert_array_equal(kernel[:, 10], np.array(first)[:, 10])


def test_where_indices_moved_each_class_takes_over_the_weights_of_its_name(digits, features):
    reference, weights = published_head(digits, "before-the-drop", (features, 10), (10,))
    _, dataset = digits
    moved = dataset.model_copy(update={"number": 2, "indices_from": 2, "classes": [*dataset.classes[1:], "another"]})
    config = configured(digits, **warm(reference))
    kernel, bias = begun(open_run(open_store(config.storage), config, moved, run_id="after-the-drop"), moved)
    np.testing.assert_array_equal(kernel[:, :9], weights[0][:, 1:])
    np.testing.assert_array_equal(bias[:9], weights[1][1:])


def test_hidden_layers_are_taken_over_too(digits, features):
    head = {"head": {"hidden": [6]}}
    reference, weights = published_head(digits, "hidden", (features, 6), (6,), (6, 10), (10,), **head)
    run = new_run(digits, "hidden-warm", **head, **warm(reference))
    assert largest_difference(begun(run, digits[1]), weights) == 0


def test_a_run_that_goes_on_does_not_begin_again(digits, features):
    reference, _ = published_head(digits, "short-lived", (features, 10), (10,))
    run = new_run(digits, "resumed", phase={"epochs": 2}, **warm(reference))
    Training(run, digits[1], shared=models_under(tf.distribute.get_strategy())).next_epoch()
    checkpoint = Checkpoints(run).newest()
    shutil.rmtree(digits[0].parent / "storage/runs/short-lived")
    assert largest_difference(begun(run, digits[1], start=checkpoint), checkpoint.weights) == 0


@pytest.mark.proof
def test_the_number_of_replicas_does_not_change_the_result(digits, champion):
    one, two = (new_run(digits, f"replicas-{count}", **warm(champion[0])) for count in (1, 2))
    expected = trained(one, digits[1]).weights
    assert largest_difference(trained(two, digits[1], strategy=two_replicas()).weights, expected) < 1e-5


@pytest.mark.proof
def test_a_pack_of_trials_begins_like_each_of_them_alone(digits, champion):
    _, dataset = digits
    runs = [
        new_run(digits, f"packed-{rate:g}", phase={"learning_rate": rate}, **warm(champion[0])) for rate in (1e-3, 1e-2)
    ]
    inputs = FeaturePlan(runs[0], dataset, build_model(runs[0].config, dataset.classes))
    inputs.extract()
    pack = Pack(runs, dataset, inputs.open(0), folder="packs/warm")
    while pack.live:
        pack.next_epoch()
    alone = new_run(digits, "packed-alone", **warm(champion[0]))
    packed = Checkpoints(runs[0]).complete().weights
    assert largest_difference(packed, trained(alone, dataset).weights) < 1e-5


def test_a_range_test_begins_where_its_run_begins(digits, champion):
    first = []
    for changes in ({}, warm(champion[0])):
        config = configured(digits, **changes)
        test = range_test_of(open_store(config.storage), config, digits[1], phase=0, low=1e-7, high=1e-6, steps=2)
        first.append(measure_curve(test, digits[1]).losses[0])
    assert first[1] < 0.8 * first[0]


def test_a_fold_is_refused_for_the_version_has_seen_its_images(digits, champion):
    run = new_run(digits, "folded", fold=Fold(0, 3), **warm(champion[0]))
    with pytest.raises(ConfigError, match="trained on images that cross-validation"):
        warm_start(build_model(run.config, digits[1].classes).head, run, digits[1])
    config = configured(digits, **warm(champion[0]), sweep={"space": {"head.dropout": [0.1, 0.2]}, "folds": 3})
    with pytest.raises(ConfigError, match=r"training\.warm_start is `digits/"):
        check_space(config)


def test_a_version_that_was_trained_on_held_out_images_is_refused_by_their_number(digits, champion, tmp_path):
    storage = shutil.copytree(digits[0].parent / "storage", tmp_path / "storage")

    def begun_on(name, validation):
        dataset = {"source": str(digits[0]), "name": name, "validation": validation, "test": 0.2}
        config = digits_config(
            digits[0], str(storage), dataset=dataset, phases=[ONE_EPOCH], **warm(champion[0], batch_size=16)
        )
        found = ingest(config, open_store(config.storage))
        begun(open_run(open_store(config.storage), config, found), found)
        return found

    # By content each image is in the same split of any dataset with these shares.
    assert begun_on("elsewhere", 0.2).reference == "elsewhere/00000001"
    with pytest.raises(ConfigError, match=r"elsewhere/00000002 holds out: \d+ of \d+ in validation\. The figures"):
        begun_on("elsewhere", 0.4)


@pytest.mark.parametrize("reference", ["digits/99", "digits/0", "other/1"])
def test_a_version_that_is_not_there_is_named(digits, reference):
    run = new_run(digits, f"missing-{reference.replace('/', '-')}", **warm(reference))
    with pytest.raises(ConfigError, match=f"`{reference}`, and there is no such version in"):
        begun(run, digits[1])


def test_a_version_whose_run_is_gone_is_refused(digits):
    reference, _ = published_head(digits, "to-be-lost", (1,))
    shutil.rmtree(digits[0].parent / "storage/runs/to-be-lost")
    with pytest.raises(ConfigError, match="its weights are gone: There is no run `to-be-lost`"):
        begun(new_run(digits, "lost", **warm(reference)), digits[1])


def test_a_head_that_is_built_otherwise_is_refused_by_what_differs(digits, champion):
    run = new_run(digits, "wider", head={"hidden": [32], "pooling": "max"}, **warm(champion[0]))
    with pytest.raises(ConfigError, match=r"head\.pooling was 'average' and is 'max'; head\.hidden was \[\] and is"):
        begun(run, digits[1])


def test_a_head_of_another_base_of_the_same_name_is_refused(digits, features, tmp_path):
    base = shutil.copy(digits_config("images", "storage").base.model, tmp_path / "base.keras")
    on_it = {"base": {"model": str(base), "image_size": 32}}
    reference, _ = published_head(digits, "on-a-file", (features, 10), (10,), **on_it)
    begun(new_run(digits, "on-the-same", **on_it, **warm(reference)), digits[1])
    # The same file, and yet another network was built for it: by another Keras, or behind a handle.
    new_run(digits, "on-a-file", **on_it).base.append({"sha256": "0" * 64, "keras": "3"}, number=1)
    with pytest.raises(ConfigError, match=r"the digest of `.*base\.keras` was 000000000000… and is"):
        begun(new_run(digits, "on-another-network", **on_it, **warm(reference)), digits[1])
    base.write_bytes(b"another")
    run = new_run(digits, "on-another-file", **on_it, **warm(reference))
    with pytest.raises(ConfigError, match=r"the file of base\.model had the SHA-256 .* and has "):
        warm_start(keras.Sequential(), run, digits[1])


def test_a_head_that_reads_other_features_is_refused(digits, features):
    head = {"head": {"pooling": "flatten"}}
    reference, _ = published_head(digits, "smaller", (features, 10), (10,), **head)
    run = new_run(digits, "larger", **head, **warm(reference))
    with pytest.raises(ConfigError, match=f"it takes {features} features, and the head here"):
        begun(run, digits[1])


def test_a_version_that_knows_none_of_the_classes_is_refused(digits, features):
    strangers = [f"stranger {index}" for index in range(10)]
    other = digits[1].model_copy(update={"name": "strangers", "classes": strangers})
    run = new_run((digits[0], other), "of-strangers")
    dataset_log(run.store, "strangers").append(other.model_dump(mode="json"))
    weights = [np.zeros((features, 10), np.float32), np.zeros(10, np.float32)]
    Checkpoints(run).save(1, Progress(complete=True), weights=weights, optimizer=[])
    reference = published(run, other)
    with pytest.raises(ConfigError, match="has none of the classes of digits/00000001"):
        begun(new_run(digits, "unknown", **warm(reference)), digits[1])


def arrays(*shapes, first=0):
    """Arrays that hold 0, 1, 2, …, each beginning with another hundred."""
    return [np.arange(np.prod(shape), dtype=float).reshape(shape) + 100 * (first + i) for i, shape in enumerate(shapes)]


def test_each_class_takes_its_column_wherever_it_stands():
    first, known = arrays((2, 4), (4,)), arrays((2, 3), (3,), first=5)
    kernel, bias = taken_over(first, known, [2, None, 0], output="softmax")
    np.testing.assert_array_equal(kernel[:, [2, 0]], known[0][:, [0, 2]])
    np.testing.assert_array_equal(kernel[:, [1, 3]], first[0][:, [1, 3]])
    np.testing.assert_array_equal(bias, [known[1][2], first[1][1], known[1][0], first[1][3]])


@pytest.mark.parametrize(("places", "sign"), [([0, 1], 1), ([1, 0], -1)])
def test_the_unit_of_a_sigmoid_changes_its_sign_with_the_order_of_its_classes(places, sign):
    first, known = arrays((2, 1), (1,)), arrays((2, 1), (1,), first=5)
    taken = taken_over(first, known, places, output="sigmoid")
    for array, expected in zip(taken, known, strict=True):
        np.testing.assert_array_equal(array, sign * expected)


def test_the_unit_of_a_sigmoid_begins_afresh_where_a_class_is_new():
    first, known = arrays((2, 3), (3,), (3, 1), (1,)), arrays((2, 3), (3,), (3, 1), (1,), first=5)
    taken = taken_over(first, known, [0, None], output="sigmoid")
    for array, expected in zip(taken, [*known[:2], *first[2:]], strict=True):
        np.testing.assert_array_equal(array, expected)
