"""Every rule is asked, answers with its numbers, and holds exactly at its limit."""

import pytest

from tests.contenders import alone, compared
from transfer.config import GateConfig
from transfer.evaluation.metrics import Interval
from transfer.registry.comparison import ClassRecall
from transfer.registry.gate import decide

OFF = {"max_class_drop": None, "max_latency_ratio": None, "max_size_ratio": None}


def rules(comparison, **gate):
    return {rule.name: rule for rule in decide(GateConfig(**gate), comparison).rules}


def recall(name, *, images=20, champion=0.9, challenger=0.9):
    return ClassRecall(name=name, images=images, champion=champion, challenger=challenger)


def with_classes(*rows):
    return compared().model_copy(update={"classes": list(rows)})


def test_a_clearly_better_challenger_is_promoted():
    decision = decide(GateConfig(), compared(gained=12, lost=3))
    assert decision.promote
    assert all(rule.passed for rule in decision.rules)


def test_all_rules_are_asked_even_when_the_first_fails():
    decision = decide(GateConfig(min_images=1000, min_accuracy=0.1), compared(gained=0, lost=9))
    assert not decision.promote
    assert [(rule.name, rule.passed) for rule in decision.rules] == [
        ("min_images", False),
        ("better", False),
        ("max_class_drop", True),
        ("min_accuracy", True),
        ("max_latency_ratio", True),
        ("max_size_ratio", True),
    ]


def test_one_failed_rule_is_enough_to_keep_the_champion():
    decision = decide(GateConfig(max_latency_ms=5), compared(gained=12, lost=3))
    assert [rule.name for rule in decision.rules if not rule.passed] == ["max_latency_ms"]
    assert not decision.promote


def test_rules_without_a_limit_are_not_asked():
    assert list(rules(compared(), **OFF)) == ["min_images", "better"]


def test_each_rule_says_in_one_sentence_what_was_found_and_what_is_asked():
    gate = {"margin": 0.01, "min_accuracy": 0.5, "min_class_recall": 0.5, "max_latency_ms": 50, "max_size_bytes": 10**8}
    for rule in rules(compared(), **gate).values():
        assert rule.text.endswith(("required.", "allowed."))
        assert rule.text.count(". ") == 0
        assert any(letter.isdigit() for letter in rule.text)


@pytest.mark.parametrize(("needed", "passed"), [(60, True), (61, False)])
def test_held_out_images_must_be_enough(needed, passed):
    rule = rules(compared(), min_images=needed)["min_images"]
    assert (rule.found, rule.limit, rule.passed) == (60, needed, passed)
    assert rule.text == f"Both models answered 60 held-out images; at least {needed} are required."


def test_images_left_out_are_mentioned():
    comparison = compared().model_copy(update={"left_out": 7})
    assert "(7 more are left out because the champion may have been" in rules(comparison)["min_images"].text


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (1, False), (5, False)])
def test_better_asks_mcnemars_test(lost, passed):
    # 5 to none: p = 1/32; 5 to 1: p = 7/64.
    rule = rules(compared(gained=5, lost=lost))["better"]
    assert (rule.limit, rule.passed) == (0.05, passed)
    if not lost:
        assert rule.found == pytest.approx(1 / 32)
        assert rule.text == (
            "The challenger alone is right for 5 images, the champion alone for 0: p = 0.0312 by McNemar's exact test; "
            "at most 0.05 is allowed."
        )


def test_better_at_another_confidence_allows_another_p():
    assert not rules(compared(gained=5, lost=0), confidence=0.99)["better"].passed
    assert rules(compared(gained=5, lost=1), confidence=0.85)["better"].passed


def test_no_difference_at_all_is_not_better():
    assert not decide(GateConfig(), compared(gained=0, lost=0)).promote


@pytest.mark.parametrize(("margin", "passed"), [(0.07, True), (0.0701, False)])
def test_a_margin_is_held_exactly_at_its_limit(margin, passed):
    comparison = compared(both=83, gained=8, lost=1, neither=8)
    rule = rules(comparison, margin=margin)["margin"]
    assert (rule.found, rule.passed) == (0.07, passed)


def test_what_just_misses_its_limit_is_written_so_that_it_shows():
    comparison = compared(both=83, gained=8, lost=1, neither=8)
    assert "is +7.00 points; at least +7.01 points are required" in rules(comparison, margin=0.0701)["margin"].text
    floor = rules(comparison, min_accuracy=0.9104)["min_accuracy"]
    assert (floor.passed, floor.text) == (
        False,
        "The challenger's accuracy is 91.00 %; at least 91.04 % is required.",
    )


def test_not_worse_looks_at_the_lower_end_of_the_interval_and_not_at_p():
    comparison = compared(gained=0, lost=0).model_copy(update={"interval": Interval(low=-0.02, high=0.04)})
    assert list(rules(comparison, require="not_worse", margin=0.02, **OFF)) == ["min_images", "not_worse"]
    assert rules(comparison, require="not_worse", margin=0.02)["not_worse"].passed
    rule = rules(comparison, require="not_worse", margin=0.01)["not_worse"]
    assert (rule.found, rule.limit, rule.passed) == (-0.02, -0.01, False)
    assert "is -2.0 points or more; at least -1.0 points are required" in rule.text


def test_the_very_same_answers_are_not_worse():
    rule = rules(compared(gained=0, lost=0), require="not_worse")["not_worse"]
    assert (rule.found, rule.limit, rule.passed) == (0.0, 0.0, True)


def test_accuracy_has_a_floor():
    comparison = compared(both=40, gained=12, lost=3, neither=5)  # 52 of 60.
    assert rules(comparison, min_accuracy=52 / 60)["min_accuracy"].passed
    assert not rules(comparison, min_accuracy=0.87)["min_accuracy"].passed


def test_the_class_that_loses_most_is_named_and_its_drop_is_counted_in_images():
    comparison = with_classes(
        recall("rose", images=10, champion=0.9, challenger=0.7), recall("tulip", champion=0.5, challenger=0.9)
    )
    at_limit = rules(comparison, max_class_drop=0.2)["max_class_drop"]
    # 0.9 - 0.7 is a little more than 0.2.
    assert (at_limit.found, at_limit.passed) == (0.2, True)
    assert at_limit.text == (
        "Of the classes with 10 held-out images or more, `rose` loses most: its recall falls by 20.0 points on 10 "
        "images; a loss of at most 20 points is allowed."
    )
    assert not rules(comparison, max_class_drop=0.19)["max_class_drop"].passed


def test_no_class_that_loses_is_said_so():
    rule = rules(with_classes(recall("rose"), recall("tulip", challenger=1.0)))["max_class_drop"]
    assert (rule.found, rule.passed) == (0.0, True)
    assert (
        rule.text
        == "No class with 10 held-out images or more loses any recall; a loss of at most 20 points is allowed."
    )


def test_classes_with_few_images_are_not_judged_alone():
    comparison = with_classes(recall("rose", images=9, challenger=0.0), recall("tulip", champion=1.0))
    found = rules(comparison, class_min_images=10, min_class_recall=0.5)
    assert found["max_class_drop"].passed
    assert found["min_class_recall"].passed
    found = rules(comparison, class_min_images=9, min_class_recall=0.5)
    assert not found["max_class_drop"].passed
    assert not found["min_class_recall"].passed
    assert "`rose`" in found["min_class_recall"].text


def test_a_class_that_is_new_to_the_champion_cannot_drop_but_has_a_floor():
    comparison = with_classes(recall("rose"), recall("new", champion=None, challenger=0.3))
    found = rules(comparison, min_class_recall=0.4)
    assert found["max_class_drop"].passed
    assert (found["min_class_recall"].found, found["min_class_recall"].passed) == (0.3, False)
    assert "`new` with 30.0 % of 20 images" in found["min_class_recall"].text


def test_with_no_class_to_judge_the_rules_pass_and_say_why():
    found = rules(with_classes(recall("rose", images=2)), min_class_recall=0.9)
    for name in ("max_class_drop", "min_class_recall"):
        assert (found[name].found, found[name].passed) == (None, True)
        assert "10 held-out images" in found[name].text


@pytest.mark.parametrize(("latency_ms", "passed"), [(15.0, True), (15.1, False)])
def test_latency_is_held_against_the_champions_and_against_a_limit(latency_ms, passed):
    found = rules(compared(latency_ms=latency_ms), max_latency_ms=15.0)
    assert found["max_latency_ratio"].found == pytest.approx(latency_ms / 10)
    assert found["max_latency_ratio"].passed is passed
    assert found["max_latency_ms"].passed is passed


@pytest.mark.parametrize(("size_bytes", "passed"), [(21 * 1024**2, True), (21 * 1024**2 + 1, False)])
def test_size_is_held_against_the_champions_and_against_a_limit(size_bytes, passed):
    found = rules(compared(size_bytes=size_bytes), max_size_bytes=21 * 1024**2)
    assert found["max_size_ratio"].passed is passed
    assert found["max_size_bytes"].passed is passed


def test_the_first_model_is_promoted_if_it_keeps_floors_and_limits():
    decision = decide(GateConfig(), alone())
    assert [rule.name for rule in decision.rules] == ["commonest_class", "first"]
    assert decision.promote
    gate = {"min_accuracy": 0.8, "min_class_recall": 0.1, "max_latency_ms": 50, "max_size_bytes": 10**9}
    failing = decide(GateConfig(**gate), alone(right=45, wrong=15))
    assert [rule.name for rule in failing.rules] == [
        "min_accuracy",
        "min_class_recall",
        "max_latency_ms",
        "max_size_bytes",
        "commonest_class",
        "first",
    ]
    assert [rule.name for rule in failing.rules if not rule.passed] == ["min_accuracy"]
    assert not failing.promote


def test_the_first_model_must_beat_the_commonest_class():
    decision = decide(GateConfig(), alone(right=20, wrong=40))
    assert [rule.name for rule in decision.rules if not rule.passed] == ["commonest_class"]
    assert not decision.promote


def test_few_images_do_not_hold_the_first_model_back():
    assert decide(GateConfig(min_images=1000), alone()).promote


def test_the_first_model_can_be_held():
    decision = decide(GateConfig(first="hold"), alone())
    assert not decision.promote
    assert decision.rules[-1].text == "Nothing serves yet; the first model waits until somebody promotes it."


def test_with_a_champion_nothing_is_first():
    assert "first" not in rules(compared(), first="hold")
