"""Published versions answer the held-out images of a dataset version, as a server would have them answer.

The models are as small as a SavedModel with the right signature can be: they tell gray images apart by brightness.
"""

import io
import pickle
from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from tests.contenders import heads
from tests.published import provenance_of
from tests.shades import CENTERS, CLASSES, World, brightness
from transfer.catalog.model import ModelVersion
from transfer.errors import DatasetError
from transfer.registry.compare_versions import compare_versions
from transfer.registry.comparison_work import LATENCY_IMAGES, latencies_ms
from transfer.registry.describe import classes_in


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
        compare_versions(world.config, world.store, world.dataset, champion=None, challenger=1)


def version_of(dataset, classes):
    return ModelVersion(
        model="shades",
        number=1,
        published_at="",
        files=(),
        classes=tuple(classes),
        provenance=provenance_of(dataset=dataset),
    )


def test_a_class_that_was_renamed_is_known_by_its_index(world):
    names = ["black", "white"]
    version = version_of(world.dataset.reference, names)
    assert classes_in(world.run.store, world.dataset, version, {}) == ["dark", "bright"]
    moved = world.dataset.model_copy(update={"number": 2, "classes": ["bright", "white"], "indices_from": 2})
    assert classes_in(world.run.store, moved, version, {"black": "pink"}) == ["pink", "white"], "by its name"


def test_a_model_of_another_dataset_is_known_by_its_names(world):
    names = ["bright", "black", "pink"]
    found = classes_in(world.run.store, world.dataset, version_of("other/00000007", names), {"black": "dark"})
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
