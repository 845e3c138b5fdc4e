"""What a run of a fold trains and validates on, that it goes on as any run does, and what classes weigh."""

import numpy as np
import pytest

from tests.digits import digits_config, hold_out, ingest_some_digits
from tests.trained import build_model, train
from transfer.config import StorageConfig
from transfer.dataset.ingest import ingest
from transfer.dataset.shards import read_columns
from transfer.errors import ConfigError, RunConflictError, TrainingError
from transfer.features.frozen import frozen_part_of
from transfer.features.store import FeatureStore
from transfer.maintenance.features import UsageWatch
from transfer.storage import open_store
from transfer.training.checkpoints import Checkpoints
from transfer.training.feature_plan import FeaturePlan
from transfer.training.rows import Fold, balanced_class_weights, class_weights, held_out_but_seen
from transfer.training.run import load_run, open_run
from transfer.training.samples import CachedSplit

FOLDS = 3


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of digits, and a store that holds them as a dataset version."""
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def store_of(digits):
    return open_store(StorageConfig(uri=str(digits[0].parent / "storage")))


def new_run(digits, run_id, *, fold=None, storage=None, epochs=2, depths=(0, 1), **changes):
    source, dataset = digits
    phases = [{"unfreeze": depth, "epochs": epochs, "learning_rate": 1e-3} for depth in depths]
    config = digits_config(source, str(storage or source.parent / "storage"), phases=phases, **changes)
    return open_run(open_store(config.storage), config, dataset, run_id=run_id, fold=fold)


def trained(run, dataset, **options):
    train(run, dataset, **options)
    return Checkpoints(run).complete()


def opened(run, dataset):
    inputs = FeaturePlan(run, dataset, build_model(run.config, dataset.classes))
    inputs.extract()
    return inputs, inputs.open(0)


def contents(split):
    """Each row of a split as bytes, in the order of the split."""
    out = np.zeros((len(split), *split.shape), split.dtype)
    split.take(np.arange(len(split)), out)
    return [row.tobytes() for row in out]


def test_every_image_is_validated_on_once_and_trained_on_in_all_other_folds(digits):
    dataset = digits[1]
    images = dataset.rows("train") + dataset.rows("validation")
    folds = [Fold(index, FOLDS).rows(store_of(digits), dataset) for index in range(FOLDS)]
    assert sorted(np.concatenate([validated for _, validated in folds])) == list(range(images))
    for training, validated in folds:
        assert sorted([*training, *validated]) == list(range(images))
        assert len(validated) in (images // FOLDS, images // FOLDS + 1)


def test_which_images_are_in_a_fold_is_no_matter_of_how_they_are_stored(digits):
    _, dataset = digits
    _, validated = Fold(0, FOLDS).rows(store_of(digits), dataset)
    train_images = dataset.rows("train")
    # Neither the first images nor those of one split.
    assert (validated < train_images).any()
    assert (validated >= train_images).any()
    assert (np.diff(validated) > 1).any()


def test_a_group_is_validated_on_as_a_whole_and_folds_are_nearly_equal(tmp_path):
    # Digit 7/0123.png is of the group 3, and each tenth image of none.
    source, _ = ingest_some_digits(tmp_path)
    config = digits_config(
        source, str(tmp_path / "grouped"), dataset={"source": str(source), "group_pattern": "([0-8])[.]png$"}
    )
    store = open_store(config.storage)
    dataset = ingest(config, store)
    shards = [shard for split in ("train", "validation") for shard in dataset.shards_of(split)]
    groups = np.concatenate([read_columns(store, shard, ["group"])["group"].to_pylist() for shard in shards])
    assert set(groups) == {*"012345678", None}
    folds = [Fold(index, FOLDS).rows(store, dataset) for index in range(FOLDS)]
    for training, validated in folds:
        assert sorted([*training, *validated]) == list(range(len(groups)))
        assert not ({*groups[training]} & {*groups[validated]}) - {None}
        assert abs(len(validated) - len(groups) / FOLDS) < 3
    old = dataset.model_copy(update={"splitting": dataset.splitting.model_copy(update={"groups_in_shards": False})})
    with pytest.raises(ConfigError, match="a release that did not store them"):
        Fold(0, FOLDS).rows(store, old)


def test_a_dataset_of_fewer_images_than_folds_is_refused(digits):
    _, dataset = digits
    with pytest.raises(ConfigError, match="fewer than 1000 folds"):
        Fold(0, 1000).rows(store_of(digits), dataset)


def test_a_fold_trains_and_validates_on_its_images_of_both_splits(digits):
    _, dataset = digits
    run = new_run(digits, "splits", fold=Fold(1, FOLDS))
    inputs, kept = opened(run, dataset)
    frozen_part = frozen_part_of(build_model(run.config, dataset.classes).backbone, 0, map_dtype="float32")
    shards = [shard for split in ("train", "validation") for shard in dataset.shards_of(split)]
    rows = [FeatureStore(run.store, frozen_part).open(shard) for shard in shards]
    everything = contents(CachedSplit(shards, rows))
    labels = np.concatenate([row.labels for row in rows])
    training, validated = run.fold.rows(run.store, dataset)
    assert contents(kept.train[0]) == [everything[row] for row in training]
    assert contents(kept.validation) == [everything[row] for row in validated]
    assert kept.train[0].labels.tolist() == labels[training].tolist()
    assert kept.validation.labels.tolist() == labels[validated].tolist()
    assert all(choice.cached for choice in inputs.choices)


def test_an_epoch_visits_a_folds_images_once_in_an_order_by_seed_and_epoch(digits):
    _, kept = opened(new_run(digits, "order", fold=Fold(0, FOLDS)), digits[1])
    split = kept.train[0]
    orders = [split.order(seed=seed, epoch=epoch).tolist() for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 3
    assert all(sorted(order) == list(range(len(split))) for order in orders)
    assert split.order(seed=None, epoch=5).tolist() == list(range(len(split)))


def test_a_fold_learns_what_its_images_teach_and_counts_only_them(digits):
    _, dataset = digits
    of_one, of_other = (trained(new_run(digits, "teach", fold=Fold(n, FOLDS)), dataset) for n in (0, 1))
    assert not np.allclose(of_one.weights[0], of_other.weights[0])
    _, validated = Fold(0, FOLDS).rows(store_of(digits), dataset)
    images = of_one.progress.history[-1].validation_accuracy * len(validated)
    assert images == pytest.approx(round(images))
    # Two phases of two epochs each, the last batch of each epoch not full.
    training, _ = Fold(0, FOLDS).rows(store_of(digits), dataset)
    assert of_one.progress.global_step == 4 * -(-len(training) // 16)


@pytest.mark.proof
def test_interrupted_and_resumed_in_a_fold_is_uninterrupted(digits):
    _, dataset = digits
    changes = {"fold": Fold(2, FOLDS), "training": {"batch_size": 16, "checkpoint_steps": 3}}
    whole = new_run(digits, "whole", **changes)
    expected = trained(whole, dataset)
    starts = [Checkpoints(whole).read(number) for number in Checkpoints(whole).numbers()[:-1]]
    in_the_middle = next(start for start in starts if start.progress.epoch == 1 and start.progress.step)
    found = trained(new_run(digits, "cut", **changes), dataset, start=in_the_middle)
    for one, other in zip(found.weights, expected.weights, strict=True):
        assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()


def test_each_fold_is_a_run_of_its_own_and_none_is_a_model_to_use(digits):
    runs = [new_run(digits, "own", fold=fold) for fold in (None, Fold(0, 5), Fold(4, 5))]
    assert [run.id for run in runs] == ["own", "own-fold1of5", "own-fold5of5"]
    assert load_run(runs[0].store, "own", runs[0].config).fold is None
    with pytest.raises(TrainingError, match="trained without one fold"):
        load_run(runs[1].store, "own-fold1of5", runs[1].config)
    with pytest.raises(RunConflictError, match="fold"):
        new_run(digits, "own-fold1of5")


def test_what_an_unfinished_fold_relies_on_is_in_use(digits):
    run = new_run(digits, "in-use", fold=Fold(0, FOLDS))
    opened(run, digits[1])
    assert "in-use-fold1of3" in {found.id for found in UsageWatch(run.store).look().runs}


def test_features_are_cached_however_cheap_the_images_would_be(digits):
    run = new_run(digits, "cheap", fold=Fold(0, FOLDS), depths=(2,), features="auto")
    inputs, _ = opened(run, digits[1])
    assert [choice.reason for choice in inputs.choices] == ["cross-validation rests on them"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features": "never"}, "Phase 0 .*features.cache is `never`"),
        ({"depths": (0, "all")}, "Phase 1 .*nothing is frozen"),
        ({"depths": (1, 0)}, "Phase 1 .*trained by an earlier phase"),
        ({"augmentation": {"flip": "horizontal"}}, "Phase 0 .*augmented anew"),
        ({"augmentation": {"flip": "horizontal", "views": 2}}, "Phase 0 .*augmented cannot be validated on"),
    ],
    ids=str,
)
def test_a_fold_with_a_phase_that_is_not_trained_on_kept_plain_images_is_refused(digits, changes, reason):
    _, dataset = digits
    run = new_run(digits, None, fold=Fold(0, FOLDS), **changes)
    with pytest.raises(ConfigError, match=reason):
        FeaturePlan(run, dataset, build_model(run.config, dataset.classes))


def test_what_a_model_was_trained_on_is_counted_in_the_splits_that_hold_it_out(digits):
    store, dataset = store_of(digits), digits[1]
    assert held_out_but_seen(store, dataset, before=dataset) is None
    shards = {split: dataset.shards_of(split)[0] for split in ("train", "validation", "test")}

    def moved(**to):
        changed = [shard.model_copy(update={"split": to[split]}) for split, shard in shards.items()]
        return dataset.model_copy(update={"shards": changed})

    rows = {split: shard.rows for split, shard in shards.items()}
    nearer = moved(train="train", validation="train", test="train")
    expected = (
        f"{rows['validation']} of {rows['validation']} in validation and {rows['test']} of {rows['test']} in test"
    )
    assert held_out_but_seen(store, dataset, before=nearer) == expected
    # Validated on before and tested on now: nothing was trained on.
    further = moved(train="train", validation="test", test="test")
    assert held_out_but_seen(store, further, before=dataset) is None


def test_class_weights_by_name_must_name_classes(digits):
    _, dataset = digits
    store = store_of(digits)
    assert class_weights({"3": 2.0}, store, dataset, None)[3] == 2.0
    assert class_weights("none", store, dataset, None).tolist() == [1.0] * 10
    with pytest.raises(ConfigError, match="not among the classes"):
        class_weights({"cat": 2.0}, store, dataset, None)


def test_balanced_weights_count_the_images_that_the_fold_trains_on(tmp_path):
    source, first = ingest_some_digits(tmp_path)
    dataset = hold_out(source, first, "7")
    store = open_store(digits_config(source, str(tmp_path / "storage")).storage)
    assert not dataset.counts["train"].get("7")
    shards = [shard for split in ("train", "validation") for shard in dataset.shards_of(split)]
    labels = np.concatenate([read_columns(store, shard, ["label"])["label"].to_numpy() for shard in shards])
    fold = Fold(0, FOLDS)
    counts = np.bincount(labels[fold.rows(store, dataset)[0]], minlength=10)
    assert counts[7]
    np.testing.assert_array_equal(class_weights("balanced", store, dataset, fold), balanced_class_weights(counts))


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_class_weights(np.bincount(labels)), expected, rtol=1e-6)
