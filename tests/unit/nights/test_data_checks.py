"""What is found in the counts of what changed, and when it is too much."""

import pytest

from tests.contenders import summed_up
from tests.shades import CENTERS, CLASSES, World, some_images
from transfer.config import ChecksConfig, parse_config
from transfer.dataset.manifest import dataset_log
from transfer.dataset.shards import write_shard
from transfer.nights.data_checks import (
    check_agreement,
    check_change,
    check_drift,
    look_at_new,
    not_asked,
    refusals,
    too_few,
)
from transfer.nights.summary import ClassChange
from transfer.training.run import open_run


def change_of(classes, *, before="pets/00000001", rejected=0):
    """A change from numbers of each class: before, new, gone."""
    changes = [ClassChange(name=name, before=b, new=n, gone=g) for name, (b, n, g) in classes.items()]
    return summed_up(changes, before=before, now="pets/00000002", rejected=rejected)


def found(change, name, **checks):
    (finding,) = [each for each in check_change(change, ChecksConfig(**checks)) if each.check == name]
    return finding


CALM = {"cat": (1000, 50, 10), "dog": (1000, 50, 10)}


def test_a_calm_night_passes_every_check_in_words_with_numbers():
    findings = check_change(change_of(CALM), ChecksConfig())
    assert [each.check for each in findings] == ["volume", "vanished", "flood", "rejects", "label_shift"]
    assert all(each.passed for each in findings)
    assert all(each.found is not None and each.text.endswith(".") for each in findings)


def test_where_no_class_was_there_before_only_refused_images_are_asked_about():
    findings = check_change(change_of({"owl": (0, 60, 0), "elk": (0, 50, 0)}), ChecksConfig())
    assert [each.check for each in findings if each.found is not None] == ["rejects"]
    assert all(each.passed for each in findings)
    assert "none of the present classes" in findings[0].text


def test_images_that_are_gone_are_a_share_of_those_before():
    volume = found(change_of({"cat": (1500, 0, 400), "dog": (500, 0, 12)}), "volume")
    assert volume.found == 412 / 2000
    assert not volume.passed
    assert volume.action == "refuse"
    assert volume.text == ("412 of 2,000 images are gone or have another class now: 20.6 % (limit 20.0 %).")


def test_a_limit_itself_may_be_reached():
    assert found(change_of({"cat": (1000, 0, 200), "dog": (0, 0, 0)}), "volume").passed


def test_a_class_that_lost_all_its_images_has_vanished():
    vanished = found(change_of({"cat": (100, 0, 100), "dog": (100, 0, 0), "eel": (0, 0, 0)}), "vanished")
    assert (vanished.found, vanished.passed) == (1, False)
    assert vanished.text == "Classes that lost all of their images: 1 (limit 0): cat."


def test_a_class_whose_images_were_all_replaced_has_not_vanished():
    assert found(change_of({"cat": (100, 30, 100), "dog": (100, 0, 0)}), "vanished").found == 0


def test_a_class_that_makes_up_nearly_all_that_is_new_floods():
    flood = found(change_of({"cat": (500, 95, 0), "dog": (500, 5, 0)}), "flood")
    assert (flood.found, flood.passed, flood.action) == (0.95, False, "warn")
    assert flood.text == (
        "The class cat makes up 95.0 % of the 100 new images (limit 80.0 %); it made up 50.0 % of the earlier ones."
    )


def test_a_class_that_always_was_nearly_all_there_is_does_not_flood():
    assert found(change_of({"cat": (900, 95, 0), "dog": (100, 5, 0)}), "flood").found == 0.05


def test_no_class_can_flood_where_all_were_beyond_the_limit_before():
    flood = found(change_of(CALM), "flood", flood={"action": "warn", "limit": 0.1})
    assert (flood.found, flood.passed) == (None, True)


def test_what_is_just_beyond_a_limit_is_written_so_that_it_shows():
    # New: 651 cats and 349 dogs, 0.151 from halves.
    change = change_of({"cat": (1000, 651, 0), "dog": (1000, 349, 0)})
    shift = found(change, "label_shift", label_shift={"action": "warn", "limit": 0.15})
    assert not shift.passed
    assert "distance of 0.151 (0: alike, 1: none in common; limit 0.150)" in shift.text
    change = change_of({"cat": (100_000, 0, 20_001), "dog": (0, 0, 0)})
    assert "now: 20.001 % (limit 20.000 %)" in found(change, "volume").text
    (drift,) = check_drift(0.8004, before=1000, new=100, checks=ChecksConfig())
    assert "curve of 0.8004 (0.5: it cannot tell them apart; limit 0.8)" in drift.text


def test_refused_images_are_a_share_of_all_that_came():
    rejects = found(change_of({"cat": (0, 990, 0)}, before=None, rejected=10), "rejects")
    assert (rejects.found, rejects.passed) == (0.01, False)


def test_other_classes_among_the_new_images_are_a_shift():
    shift = found(change_of({"cat": (500, 900, 0), "dog": (500, 100, 0)}), "label_shift")
    assert shift.found == pytest.approx(0.4)
    assert not shift.passed
    assert shift.limit == 0.3


def test_a_few_images_of_many_classes_are_no_shift_for_their_number_alone():
    classes = {f"class {index}": (100, int(index < 25), 0) for index in range(100)}
    shift = found(change_of(classes), "label_shift")
    assert shift.found == pytest.approx(0.75)
    assert shift.passed
    assert shift.limit > 0.75
    assert "by chance" in shift.text


@pytest.mark.parametrize("name", ["volume", "vanished", "flood", "label_shift"])
def test_without_a_champion_there_is_nothing_to_compare_with(name):
    finding = found(change_of({"cat": (0, 100, 0), "dog": (0, 1, 0)}, before=None), name)
    assert (finding.found, finding.passed) == (None, True)
    assert "No model serves yet" in finding.text


@pytest.mark.parametrize(("new", "asked"), [(19, False), (20, True)])
def test_a_handful_of_new_images_is_not_judged_by_its_classes(new, asked):
    change = change_of({"cat": (500, new, 0), "dog": (500, 0, 0)})
    for name in ("flood", "label_shift"):
        finding = found(change, name)
        assert finding.passed != asked
        assert (finding.found is not None) == asked


def test_what_is_gone_is_judged_however_few_images_are_new():
    change = change_of({"cat": (10, 0, 10), "dog": (10, 0, 0)})
    assert not found(change, "volume").passed
    assert not found(change, "vanished").passed


def test_a_check_that_is_off_finds_nothing():
    off = dict.fromkeys(("volume", "vanished", "flood", "rejects", "label_shift", "drift", "agreement"), "off")
    checks = ChecksConfig(**off)
    assert check_change(change_of({"cat": (10, 0, 10)}), checks) == []
    assert check_drift(0.99, before=100, new=100, checks=checks) == []
    assert check_agreement(0.1, 0.9, images=100, checks=checks) == []
    assert not_asked("drift", "There are none.", checks) == []


def test_new_images_that_are_easily_told_apart_have_drifted():
    (finding,) = check_drift(0.93, before=2000, new=300, checks=ChecksConfig())
    assert (finding.check, finding.found, finding.passed) == ("drift", 0.93, False)
    assert "300 new images from 2,000 earlier ones" in finding.text


@pytest.mark.parametrize(("accuracy", "passed"), [(0.95, True), (0.7, True), (0.6, False)])
def test_labels_that_the_champion_contradicts_more_than_usual_are_found(accuracy, passed):
    (finding,) = check_agreement(accuracy, 0.9, images=200, checks=ChecksConfig())
    assert finding.found == pytest.approx(0.9 - accuracy)
    assert finding.passed is passed
    said = "There is no drop" if accuracy > 0.9 else f"The drop is {90 - 100 * accuracy:.0f} points"
    assert finding.text == (
        f"The serving model agrees with {100 * accuracy:.1f} % of the labels of 200 new images "
        f"(90.0 % on held-out images). {said}; the limit is 25."
    )


def test_only_what_is_to_be_refused_and_did_not_pass_is_a_refusal():
    change = change_of({"cat": (100, 50, 100), "dog": (100, 0, 0), "eel": (100, 0, 100)})
    findings = check_change(change, ChecksConfig(volume="warn"))
    assert {each.check for each in findings if not each.passed} == {"volume", "vanished", "flood", "label_shift"}
    assert [each.check for each in refusals(findings)] == ["vanished"]


def test_how_few_is_too_few_is_said():
    assert too_few(1, ChecksConfig()) == "There is 1 new image; the check needs at least 20 (checks.min_new_images)."
    assert too_few(20, ChecksConfig()) is None


def test_a_model_that_sees_another_depth_is_not_asked_whether_it_agrees(tmp_path):
    world = World(tmp_path, test=0.2, validation=0.2)
    champion = world.publish(CLASSES, list(CENTERS.values()))
    new = write_shard(world.store, some_images(seed=1)[:40], split="train")
    now = world.dataset.model_copy(
        update={"number": 2, "parent": 1, "depth": "scale", "shards": [*world.dataset.shards, new]}
    )
    dataset_log(world.store, "shades").append(now.model_dump(mode="json"))
    changes = {"dataset": {**world.config.dataset.model_dump(), "depth": "scale"}}
    config = parse_config({**world.config.model_dump(), **changes, "nightly": {"checks": {"drift": {"action": "off"}}}})
    run = open_run(world.store, config, now)
    (finding,) = look_at_new(config, run_id=run.id, champion=champion.number)
    assert finding.check == "agreement"
    assert (finding.found, finding.passed) == (None, True)
    assert "The serving model sees dataset.depth reject, and now it is scale." in finding.text
