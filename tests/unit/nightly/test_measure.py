"""Published versions answer the held-out images of a dataset version, as a server would have them answer.

The models are as small as a SavedModel with the right signature can be: they tell gray images apart by brightness.
"""

import hashlib
import io
import pickle
import tempfile
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.datasets import first_version
from tests.unit.nightly.contenders import heads
from transfer.config import parse_config
from transfer.dataset.manifest import dataset_log
from transfer.dataset.shards import write_shard
from transfer.dataset.splits import SPLITS, split_indices
from transfer.errors import DatasetError
from transfer.nightly.measure import LATENCY_IMAGES, classes_in, compare_versions, latencies_ms
from transfer.registry.versions import ModelVersion, add_version
from transfer.storage import open_store
from transfer.training.run import open_run

CLASSES = ["dark", "bright", "gray"]
CENTERS = {"dark": 40.0, "bright": 220.0, "gray": 130.0}
IMAGES = 150


class Brightness(tf.Module):
    """Answers with the class whose center is nearest to an image's mean."""

    def __init__(self, centers):
        super().__init__()
        self.centers = tf.Variable(centers, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        def mean(encoded):
            return tf.reduce_mean(tf.cast(tf.io.decode_png(encoded, channels=1), tf.float32))

        means = tf.map_fn(mean, image_bytes, fn_output_signature=tf.float32)
        return {"probabilities": tf.nn.softmax(-tf.abs(means[:, None] - self.centers) / 20)}


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def some_images():
    """Gray images of each class in turns: rows as shards hold them, with their brightness beside."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        label = number % 3
        pixels = generator.normal(CENTERS[CLASSES[label]] + generator.normal(0, 30), 5, (8, 8)).clip(0, 255)
        image = png(pixels.astype(np.uint8))
        digest = hashlib.sha256(image).hexdigest()
        rows.append({"key": f"{number}.png", "image": image, "label": label, "sha256": digest, "width": 8, "height": 8})
    return sorted(rows, key=lambda row: row["sha256"])


def brightness(row):
    return np.asarray(Image.open(io.BytesIO(row["image"])), np.float64).mean()


class World:
    """A store with a dataset version, a run on it, and versions of models."""

    def __init__(self, folder, *, test, validation):
        dataset = {"source": "digits", "test": test, "validation": validation}
        self.config = parse_config(
            {"name": "shades", "storage": str(folder), "dataset": dataset, "base": {"model": "MobileNetV2"}}
        )
        self.store = open_store(self.config.storage)
        self.rows = some_images()
        splits = split_indices(heads([row["sha256"] for row in self.rows]), test=test, validation=validation)
        self.splits = [SPLITS[split] for split in splits]
        shards = []
        for split in SPLITS:
            rows = self.of(split)
            # Two shards, so that order between them counts, and none without rows.
            shards += [write_shard(self.store, part, split=split) for part in (rows[:20], rows[20:]) if part]
        self.dataset = first_version("shades", CLASSES, shards=shards)
        dataset_log(self.store, "shades").append(self.dataset.model_dump(mode="json"))
        self.run = open_run(self.store, self.config, self.dataset)

    def of(self, split):
        return [row for row, its in zip(self.rows, self.splits, strict=True) if its == split]

    def publish(self, classes, centers, *, dataset="shades/00000001", **shares):
        """A version; `shares` of test and validation that it was trained with are those of the world unless given."""
        model = Brightness(centers)
        provenance = {
            "run": f"run-of-{len(classes)}",
            "dataset": dataset,
            "config": {"dataset": {**self.config.dataset.model_dump(mode="json"), **shares}},
        }
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(model, folder, signatures={"serving_default": model.serve})
            return add_version(self.store, "shades", Path(folder), classes=list(classes), provenance=provenance)

    def compare(self, champion, challenger):
        return compare_versions(
            self.config, run_id=self.run.id, champion=champion and champion.number, challenger=challenger.number
        )


def nearest(row, classes, centers):
    return classes[np.argmin(np.abs(np.array(centers) - brightness(row)))]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"), test=0.4, validation=0.2)


@pytest.fixture(scope="module")
def good(world):
    return world.publish(CLASSES, [CENTERS[name] for name in CLASSES])


@pytest.fixture(scope="module")
def older(world):
    """It does not know gray."""
    return world.publish(CLASSES[:2], [40.0, 220.0])


@pytest.fixture(scope="module")
def compared(world, older, good):
    return world.compare(older, good)


def test_both_answer_every_image_of_the_test_split_as_published(world, older, good, compared):
    comparison, _ = compared
    rows = world.of("test")
    truth = [CLASSES[row["label"]] for row in rows]
    ours = [nearest(row, CLASSES, [40.0, 220.0, 130.0]) for row in rows]
    theirs = [nearest(row, CLASSES[:2], [40.0, 220.0]) for row in rows]
    right, before = np.equal(ours, truth), np.equal(theirs, truth)
    assert (comparison.images, comparison.left_out) == (len(rows), 0)
    assert comparison.challenger.metrics.accuracy == right.mean()
    assert comparison.champion.metrics.accuracy == before.mean()
    assert (comparison.gained, comparison.lost) == ((right & ~before).sum(), (before & ~right).sum())
    assert comparison.gained > 0
    assert comparison.lost > 0
    assert {flip.key: (flip.champion, flip.challenger) for flip in comparison.flips}.items() <= {
        row["key"]: answers for row, answers in zip(rows, zip(theirs, ours, strict=True), strict=True)
    }.items()


def test_each_side_says_which_version_it_is_and_what_it_costs(older, good, compared):
    comparison, _ = compared
    for side, version, run in ((comparison.challenger, good, "run-of-3"), (comparison.champion, older, "run-of-2")):
        assert (side.version, side.run, side.dataset) == (version.number, run, "shades/00000001")
        assert side.size_bytes == version.size_bytes > 0
        assert side.latency_ms > 0


def test_a_class_that_the_champion_does_not_know_has_no_recall_there(compared):
    comparison, _ = compared
    assert [row.champion is None for row in comparison.classes] == [False, False, True]


def test_images_that_flipped_have_thumbnails_by_their_content(world, compared):
    comparison, thumbnails = compared
    assert set(thumbnails) == {flip.sha256 for flip in comparison.flips}
    images = {row["sha256"]: row["image"] for row in world.rows}
    for digest, thumbnail in thumbnails.items():
        shown = Image.open(io.BytesIO(b64decode(thumbnail.uri.partition(",")[2]))).convert("L")
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(Image.open(io.BytesIO(images[digest]))))


def test_the_answer_is_small_enough_to_cross_processes(compared):
    assert len(pickle.dumps(compared)) < 100_000


def test_images_that_the_champion_was_trained_on_are_left_out(world, good):
    champion = world.publish(CLASSES, [60.0, 220.0, 130.0], test=0.1)
    comparison, _ = world.compare(champion, good)
    places = heads([row["sha256"] for row in world.of("test")]) / 2.0**64
    assert comparison.left_out == (places >= 0.1).sum() > 0
    assert comparison.images == (places < 0.1).sum()


def test_without_a_champion_the_challenger_is_asked_alone(world, good):
    comparison, thumbnails = world.compare(None, good)
    assert comparison.champion is None
    assert comparison.images == len(world.of("test"))
    assert thumbnails == {}


def test_without_a_test_split_the_validation_split_is_used(tmp_path):
    world = World(tmp_path, test=0.0, validation=0.3)
    version = world.publish(CLASSES, [40.0, 220.0, 130.0])
    comparison, _ = world.compare(version, version)
    assert (comparison.images, comparison.left_out) == (len(world.of("validation")), 0)
    assert comparison.difference == 0.0


def test_without_any_held_out_images_it_says_so(tmp_path):
    world = World(tmp_path, test=0.0, validation=0.0)
    with pytest.raises(DatasetError, match="neither a test nor a validation split"):
        compare_versions(world.config, run_id=world.run.id, champion=None, challenger=1)


def version_of(dataset, classes):
    return ModelVersion(
        model="shades", number=1, published_at="", files=(), classes=tuple(classes), provenance={"dataset": dataset}
    )


def test_a_class_that_was_renamed_is_known_by_its_index(world):
    names = ["black", "white"]
    assert classes_in(world.dataset, version_of("shades/00000007", names), {}) == ["dark", "bright"]


def test_a_model_of_another_dataset_is_known_by_its_names(world):
    names = ["bright", "black", "pink"]
    found = classes_in(world.dataset, version_of("other/00000007", names), {"black": "dark"})
    assert found == ["bright", "dark", "pink"]


def test_latency_is_measured_in_turns_on_the_same_images():
    asked = []
    images = [bytes([number]) for number in range(LATENCY_IMAGES)]

    def model(name):
        return lambda encoded: asked.append((name, encoded))

    times = latencies_ms([model("a"), model("b")], images)
    assert len(times) == 2
    assert all(time > 0 for time in times)
    measured = asked[-2 * len(images) :]
    assert all(len(encoded) == 1 for _, encoded in measured)
    for turn, image in enumerate(images):
        pair = measured[2 * turn : 2 * turn + 2]
        assert [encoded for _, encoded in pair] == [[image], [image]]
        assert [name for name, _ in pair] == (["a", "b"] if turn % 2 else ["b", "a"])
    assert asked[: -2 * len(images)], "nothing was asked to warm up"
