"""What serves is asked about images that it was not evaluated on, and where it is not, it is said why."""

import pickle

import pytest

from tests.shades import CENTERS, CLASSES, World
from transfer.dataset.index import ImageIndex
from transfer.dataset.manifest import dataset_log
from transfer.errors import ObjectNotFoundError
from transfer.evaluation.units import INDEXED, UnitImages, units_of
from transfer.registry.promote import promote
from transfer.registry.serving_answers import answers_of_serving

OTHERS = ["a", "b"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Its dataset has a second version with the same images: it stands for one with others."""
    world = World(tmp_path_factory.mktemp("world"), test=0.4, validation=0.2)
    second = world.dataset.model_copy(update={"number": 2, "parent": 1})
    dataset_log(world.store, "shades").append(second.model_dump(mode="json"))
    world.dataset = second
    return world


def serving(world, classes, centers, *, split="test", gate_asks=False, **published):
    """What `answers_of_serving` has of a version that is made to serve."""
    promote(world.store, world.publish(classes, centers, **published), reason="to be asked")
    return answers_of_serving(world.config, world.store, world.dataset, split, but="new-run", gate_asks=gate_asks)


def answers_of(world, asked):
    """What it answers about the unit of the test split, as in another process."""
    (unit,) = units_of(world.dataset.shards_of("test"))
    index = ImageIndex(world.store, world.dataset, INDEXED)
    images = UnitImages(world.store, index, unit, whole=True)
    return pickle.loads(pickle.dumps(asked)).answers(world.store, unit, images)  # noqa: S301 - our own bytes


def test_a_version_that_was_evaluated_on_other_images_answers_the_new_ones(world):
    found = serving(world, CLASSES, list(CENTERS.values()))
    answers = answers_of(world, found.asked)
    rows = world.of("test")
    assert answers.predictions.keys == [row["key"] for row in rows]
    assert answers.predictions.labels.tolist() == [row["label"] for row in rows]
    right = answers.predictions.predicted == answers.predictions.labels
    assert right.mean() > 0.7
    assert answers.comparable.all()
    assert found.unknown == ()


def test_images_that_it_may_have_been_trained_on_are_told_apart_and_classes_that_are_new_to_it(world):
    found = serving(world, CLASSES[:2], [40.0, 220.0], test=0.2)
    answers = answers_of(world, found.asked)
    assert 0 < answers.comparable.sum() < len(answers.comparable)
    assert found.unknown == ("gray",)
    gray = answers.predictions.labels == CLASSES.index("gray")
    assert not (answers.predictions.predicted == answers.predictions.labels)[gray].any()


def test_a_classifier_that_was_not_trained_here_is_asked_about_all_images_by_the_names_of_its_classes(world):
    found = serving(world, ["bright", "other", "dark"], [220.0, 500.0, 40.0], dataset=None)
    answers = answers_of(world, found.asked)
    right = answers.predictions.predicted == answers.predictions.labels
    assert right[answers.predictions.labels != CLASSES.index("gray")].mean() > 0.7
    assert answers.comparable.all()
    assert (found.reported, found.unknown) == (None, ("gray",))
    assert serving(world, OTHERS, [40.0, 220.0], dataset=None) is None


def test_it_is_said_why_there_is_no_comparison(world):
    centers = list(CENTERS.values())
    assert serving(world, CLASSES, centers, gate_asks=True).asked == "the gate asks both"
    assert "knows none of the classes" in serving(world, OTHERS, [40.0, 220.0], dataset="other/00000001").asked
    assert "no held-out images" in serving(world, CLASSES, centers, split="train").asked
    trained_on_all = serving(world, CLASSES, centers, test=0.0, validation=0.0).asked
    assert not answers_of(world, trained_on_all).comparable.any()


def test_a_version_that_cannot_be_loaded_says_so(world):
    version = world.publish(CLASSES, list(CENTERS.values()))
    promote(world.store, version, reason="to be asked")
    graph = next(file for file in version.files if file.name == "saved_model.pb")
    world.store.remove(f"{version.folder}/{graph.name}")
    asked = answers_of_serving(world.config, world.store, world.dataset, "test", but="new-run").asked
    with pytest.raises(ObjectNotFoundError):
        answers_of(world, asked)


def test_a_run_is_not_set_beside_a_version_of_its_own(world):
    version = world.publish(CLASSES, list(CENTERS.values()))
    promote(world.store, version, reason="to be asked")
    run = version.provenance.run
    assert answers_of_serving(world.config, world.store, world.dataset, "test", but=run) is None
