"""Both models are judged on the same images, in the same classes, whatever classes each was trained on."""

import numpy as np
import pytest

from tests.contenders import alone, compare, compared, contender, digest, heads, held_out
from transfer.config import GateConfig
from transfer.dataset.splits import SPLITS, drawn_never_trained_on, split_indices
from transfer.errors import DatasetError
from transfer.registry.comparison import MAX_FLIPS, Answered, HeldOut, judge

AB = ["a", "b"]
ABC = ["a", "b", "c"]


def recalls(comparison):
    return [(row.name, row.images, row.champion, row.challenger) for row in comparison.classes]


def test_images_gained_and_lost_are_counted_and_the_difference_is_theirs():
    found = compared(both=80, gained=12, lost=5, neither=3)
    assert (found.images, found.left_out, found.gained, found.lost) == (100, 0, 12, 5)
    assert found.difference == 0.07
    assert found.challenger.metrics.accuracy == pytest.approx(0.92)
    assert found.champion.metrics.accuracy == pytest.approx(0.85)
    assert found.interval.low < 0.07 < found.interval.high
    assert found.p_value == pytest.approx(0.0717, abs=1e-4)


def test_the_interval_is_asked_at_the_gates_confidence():
    wide, narrow = (compared(gate=GateConfig(confidence=confidence)).interval for confidence in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_without_a_champion_the_challenger_stands_alone():
    found = alone(right=45, wrong=15)
    assert found.challenger.metrics.accuracy == 0.75
    assert (found.champion, found.difference, found.interval, found.p_value) == (None, None, None, None)
    assert (found.gained, found.lost, found.flips) == (0, 0, ())
    assert [row.champion for row in found.classes] == [None, None, None]


def test_images_that_the_champion_may_know_count_for_neither():
    images = held_out([0, 1, 0, 1], AB, comparable=[True, True, False, False])
    found = compare(contender(["a", "b", "b", "a"], AB), contender(["b", "a", "a", "b"], AB), images, GateConfig())
    assert (found.images, found.left_out, found.gained, found.lost) == (2, 2, 2, 0)
    assert found.challenger.metrics.images == found.champion.metrics.images == 2
    assert [(flip.key, flip.sha256) for flip in found.flips] == list(
        zip(images.keys[:2], images.digests[:2], strict=True)
    )


def test_nothing_to_compare_on_is_an_error_with_advice():
    images = held_out([0, 1], AB, comparable=[False, False])
    with pytest.raises(DatasetError, match=r"None of the 2 held-out images .* rollback --to"):
        compare(contender(["a", "b"], AB), contender(["a", "b"], AB), images, GateConfig())


def test_a_class_that_the_champion_does_not_know_is_wrong_there_and_has_no_recall():
    found = compare(
        contender(["a", "b", "c", "c"], ABC),
        contender(["a", "b", "a", "b"], AB),
        held_out([0, 1, 2, 2], ABC),
        GateConfig(),
    )
    assert found.gained == 2
    assert found.champion.metrics.accuracy == 0.5
    assert recalls(found) == [("a", 1, 1.0, 1.0), ("b", 1, 1.0, 1.0), ("c", 2, None, 1.0)]


def test_an_image_taken_for_a_class_that_only_the_champion_knows_is_wrong():
    champion = contender(["old", "b"], ["old", "b", "a"], sure=0.9)
    found = compare(contender(["a", "b"], AB), champion, held_out([0, 1], AB), GateConfig())
    assert (found.gained, found.lost) == (1, 0)
    assert [flip.champion for flip in found.flips] == ["old"]
    assert recalls(found) == [("a", 1, 0.0, 1.0), ("b", 1, 1.0, 1.0)]


def test_classes_are_matched_by_name_and_not_by_place():
    found = compare(contender(["a", "b"], AB), contender(["a", "b"], ["b", "a"]), held_out([0, 1], AB), GateConfig())
    assert (found.gained, found.lost) == (0, 0)


def test_two_classes_of_the_champion_that_became_one_answer_together():
    # 0.3 and 0.3 for what is `a` now, 0.4 for `b`.
    who, answered = contender(["b"], ["a", "b", "x"], sure=0.4)
    merged = Answered(["a", "b", "a"], answered.probabilities)
    found = compare(contender(["a"], AB), (who, merged), held_out([0], AB), GateConfig())
    assert (found.gained, found.lost) == (0, 0)
    assert found.champion.metrics.loss == pytest.approx(-np.log(0.6), abs=1e-5)


def test_a_class_without_images_has_no_recall():
    found = compare(contender(["a"], AB), contender(["a"], AB), held_out([0], AB), GateConfig())
    assert recalls(found) == [("a", 1, 1.0, 1.0), ("b", 0, None, None)]


def test_flips_are_the_surest_of_each_kind_and_equal_ones_go_by_key():
    count = MAX_FLIPS + 3
    labels = np.zeros(2 * count, int)
    sure = np.tile(np.linspace(0.6, 0.9, count), 2)
    sure[1] = sure[0]
    found = compare(
        contender(["a"] * count + ["b"] * count, AB, sure=sure),
        contender(["b"] * count + ["a"] * count, AB),
        held_out(labels, AB),
        GateConfig(),
    )
    assert (found.gained, found.lost) == (count, count)
    gained = [flip.key for flip in found.flips if flip.challenger == "a"]
    lost = [flip.key for flip in found.flips if flip.challenger == "b"]
    assert gained == [f"images/{row:04d}.png" for row in range(count - 1, 2, -1)]
    assert lost == [f"images/{row:04d}.png" for row in range(2 * count - 1, count + 2, -1)]
    assert {(flip.truth, flip.champion) for flip in found.flips} == {("a", "a"), ("a", "b")}

    few = slice(0, 2)
    tied = compare(
        contender(["a", "a"], AB, sure=sure[few]), contender(["b", "b"], AB), held_out(labels[few], AB), GateConfig()
    )
    assert [flip.key for flip in tied.flips] == ["images/0000.png", "images/0001.png"]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_judged_of_parts_is_what_is_judged_of_the_whole(seed):
    generator = np.random.default_rng(seed)
    count = 400
    labels, comparable = generator.integers(0, 3, count), generator.random(count) < 0.8
    whole = held_out(labels, ABC, comparable=comparable)
    both = [
        contender(generator.choice(ABC, count), ABC, sure=generator.choice([0.4, 0.6, 0.9], count))[1] for _ in range(2)
    ]
    parts = []
    for rows in np.split(generator.permutation(count), np.sort(generator.integers(0, count, 6))):
        keys, digests = ([names[row] for row in rows] for names in (whole.keys, whole.digests))
        images = HeldOut(keys, digests, whole.labels[rows], comparable[rows], ABC)
        parts.append(judge(images, *(Answered(ABC, each.probabilities[rows]) for each in both)))
    found, *others = parts
    for other in others:
        found += other
    assert found == judge(whole, *both)
    assert len(found.gains) == len(found.losses) == MAX_FLIPS


@pytest.mark.parametrize(
    ("split", "now", "then", "kept"),
    [
        ("test", {"test": 0.2, "validation": 0.1}, {"test": 0.2, "validation": 0.3}, 1.0),
        ("test", {"test": 0.2, "validation": 0.1}, {"test": 0.3, "validation": 0.1}, 1.0),
        ("test", {"test": 0.2, "validation": 0.1}, {"test": 0.05, "validation": 0.1}, 0.25),
        ("test", {"test": 0.2, "validation": 0.1}, {"test": 0.0, "validation": 0.2}, 0.0),
        ("validation", {"test": 0.0, "validation": 0.2}, {"test": 0.1, "validation": 0.05}, 0.75),
        ("validation", {"test": 0.0, "validation": 0.2}, {"test": 0.0, "validation": 0.2}, 1.0),
    ],
)
def test_images_are_left_out_by_the_shares_of_the_champions_own_configuration(split, now, then, kept):
    digests = [digest(str(number)) for number in range(20_000)]
    inside = split_indices(heads(digests), **now) == SPLITS.index(split)
    held = [each for each, chosen in zip(digests, inside, strict=True) if chosen]
    comparable = drawn_never_trained_on(held, split, then)
    assert comparable.mean() == pytest.approx(kept, abs=0.02)
    of_champion = split_indices(heads(held)[comparable], **then)
    assert SPLITS.index("train") not in of_champion
    if split == "test":
        assert (of_champion == SPLITS.index("test")).all()
