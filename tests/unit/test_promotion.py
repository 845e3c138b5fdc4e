"""Whether what a job published serves: every policy, against what serves and against what was decided meanwhile."""

import numpy as np
import pytest

from tests.digits import digits_config
from tests.published import publish_some
from tests.shades import CLASSES, World
from transfer.evaluation.metrics import Tally
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.promotion import choose
from transfer.registry.describe import describe_version, refusals_of
from transfer.registry.promote import promote, read_serving, roll_back
from transfer.storage import open_store
from transfer.training.run import Run

MODEL = "digits"


@pytest.fixture
def run(tmp_path):
    config = digits_config(tmp_path / "images", str(tmp_path / "storage"))
    return Run(open_store(config.storage), "run-0", config, MODEL, 1)


def with_policy(run, policy):
    publish = run.config.publish.model_copy(update={"promote": policy})
    return Run(run.store, run.id, run.config.model_copy(update={"publish": publish}), run.dataset_name, 1)


def report_of(run, *, right):
    """Of 4 images, 2 of each class; the model has so many right."""
    labels = np.array([0, 0, 1, 1], np.int32)
    answers = np.where(np.arange(4) < right, labels, 1 - labels)
    predictions = Predictions(list("abcd"), labels, np.eye(2, dtype=np.float32)[answers], ["x", "y"])
    return Report(
        name=MODEL,
        dataset="digits/00000001",
        run_id=run.id,
        split="test",
        base="b",
        metrics=Tally.of(predictions).metrics(),
        history=[],
        mistakes=[],
        counts={},
        config={},
    )


def serving_after(run, versions, *, policy, right=4):
    choice = choose(with_policy(run, policy), versions[-1], report_of(run, right=right))
    assert choice.serving == read_serving(run.store, MODEL)
    return choice.promoted, choice.serving.version


@pytest.mark.parametrize(("policy", "serves"), [("first", 1), ("always", 1), ("never", None)])
def test_the_first_version_serves_unless_it_never_shall(run, policy, serves):
    versions = publish_some(run.store, 1, model=MODEL)
    assert serving_after(run, versions, policy=policy) == (serves == 1, serves)


def test_the_first_one_does_not_serve_if_it_is_no_better_than_the_commonest_class(run):
    versions = publish_some(run.store, 1, model=MODEL)
    choice = choose(run, versions[0], report_of(run, right=2))
    assert (choice.promoted, choice.serving.version) == (False, None)
    assert "no better than always answering the commonest class" in choice.why
    assert "transfer registry promote CONFIG 1" in choice.why
    # Whoever asks later is told.
    choose(run, versions[0], report_of(run, right=2))
    (refusal,) = refusals_of(run.store, versions[0])
    assert refusal.text == "Refused: It is no better than always answering the commonest class."
    assert serving_after(run, versions, policy="first", right=3) == (True, 1)


@pytest.mark.parametrize(("policy", "serves"), [("first", 1), ("always", 2), ("never", 1)])
def test_a_later_version_serves_only_if_it_always_shall(run, policy, serves):
    publish_some(run.store, 1, promoted=[1], model=MODEL)
    later = publish_some(run.store, 1, model=MODEL)
    assert serving_after(run, later, policy=policy) == (serves == 2, serves)


def test_a_repeated_call_does_not_go_against_a_later_decision(run):
    publish_some(run.store, 1, promoted=[1], model=MODEL)
    later = publish_some(run.store, 1, model=MODEL)
    assert serving_after(run, later, policy="always") == (True, 2)
    assert serving_after(run, later, policy="always") == (False, 2)
    roll_back(run.store, MODEL, reason="2 is bad")
    choice = choose(with_policy(run, "always"), later[0], report_of(run, right=4))
    assert (choice.promoted, choice.serving.version) == (False, 1)
    assert f"Version 2 waits: it was published on {later[0].published_at}, before that was decided" in choice.why
    assert "instead of version 2 (2 is bad)" in choice.why


def test_a_call_that_died_before_it_promoted_is_finished_by_its_repetition(run):
    publish_some(run.store, 1, promoted=[1], model=MODEL)
    later = publish_some(run.store, 1, model=MODEL)
    assert serving_after(run, later, policy="never") == (False, 1)
    assert serving_after(run, later, policy="always") == (True, 2)


def test_what_an_earlier_release_published_is_not_promoted_over_what_serves(run):
    publish_some(run.store, 1, promoted=[1], model=MODEL)
    (later,) = publish_some(run.store, 1, model=MODEL)
    earlier = [later.model_copy(update={"published_after": None})]
    assert serving_after(run, earlier, policy="always") == (False, 1)


def test_a_version_published_again_takes_only_its_own_place(run):
    first, second, third = publish_some(run.store, 3, promoted=[1], model=MODEL)
    report = report_of(run, right=4)
    assert not choose(run, third, report, instead_of=second).promoted
    assert choose(run, third, report, instead_of=first).serving.version == 3


def test_what_a_gate_decided_by_is_written_down_whether_it_refuses_or_not(tmp_path):
    world = World(tmp_path, test=0.4, validation=0.2)
    run = with_policy(world.run, "gate")
    good, worse = (world.publish(CLASSES, centers) for centers in ([40.0, 220.0, 130.0], [220.0, 130.0, 40.0]))
    assert choose(run, good, report_of(run, right=4)).promoted
    assert [rule["name"] for rule in read_serving(run.store, "shades").promotion.evidence["rules"]] == [
        "commonest_class",
        "first",
    ]
    # Published while `good` served.
    worse = worse.model_copy(update={"published_after": 1})
    choice = choose(run, worse, report_of(run, right=4))
    (refusal,) = refusals_of(run.store, worse)
    assert (refusal.champion, refusal.evidence["run"]) == (good.number, run.id)
    assert "better" in {rule["name"] for rule in refusal.failed}
    assert all(rule["text"] in choice.why for rule in refusal.failed)
    assert describe_version(run.store, "shades", worse.number).refusal == refusal
    assert describe_version(run.store, "shades", good.number).refusal is None


def test_a_decision_at_the_same_moment_wins(run, monkeypatch):
    publish_some(run.store, 1, promoted=[1], model=MODEL)
    second, third = publish_some(run.store, 2, model=MODEL)

    def beaten(store, version, **options):
        promote(store, second, reason="somebody else")
        return promote(store, version, **options)

    monkeypatch.setattr("transfer.promotion.promote", beaten)
    choice = choose(with_policy(run, "always"), third, report_of(run, right=4))
    assert (choice.promoted, choice.serving.version) == (False, 2)
    assert "(somebody else)" in choice.why
