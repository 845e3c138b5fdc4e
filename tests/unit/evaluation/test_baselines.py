"""Baselines: what follows from counts, in words, and on the page. `test_evaluate.py` has those of runs."""

import numpy as np
import pytest

from transfer.cli.summary import baselines_for_programs
from transfer.evaluation.baselines import Baseline, Baselines, commonest_class_baseline
from transfer.evaluation.page import render_html
from transfer.evaluation.report import Report, beside


def probe(gained, lost, *, images=400, run_right=300, name="linear probe"):
    return Baseline.of(name, images=images, run_right=run_right, gained=gained, lost=lost)


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (
            60,
            12,
            "Training gains 12.0 points (8.0 to 16.0) over a linear probe on the same features, on 400 of the images.",
        ),
        (3, 40, "The model is worse than a linear probe on the same features, -9.2 points (-12.2 to -6.2)"),
        (10, 9, "The model is about as good as a linear probe on the same features, +0.2 points (-2.0 to 2.5)"),
    ],
)
def test_the_verdict_goes_by_the_interval_of_the_paired_difference(gained, lost, words):
    better, worse = probe(gained, lost), probe(gained + 20, lost, name="nearest neighbours")
    assert Baselines(made=(better, worse)).verdict.startswith(words)
    assert better.accuracy == pytest.approx((300 - gained + lost) / 400)
    assert better.difference == pytest.approx(better.run_accuracy - better.accuracy)


@pytest.mark.parametrize(
    ("gained", "lost", "words"),
    [
        (60, 12, "Transfer gains 12.0 points (8.0 to 16.0): of 400 images, a linear probe has 75.0 % right with the"),
        (3, 40, "Negative transfer, -9.2 points (-12.2 to -6.2): of 400 images, a linear probe has 75.0 % right with"),
        (10, 9, "400 images do not show whether transfer helps, +0.2 points (-2.0 to 2.5): of 400 images, a linear"),
    ],
)
def test_only_probes_of_both_networks_tell_whether_transfer_helps(gained, lost, words):
    random = probe(gained, lost, name="random network")
    assert Baselines(made=(), transfer=random).verdict.startswith(words)
    assert "ransfer" not in Baselines(made=(probe(gained, lost), random)).verdict


def test_answers_are_compared_image_by_image():
    right, run_right = np.array([1, 0, 0, 1, 0], bool), np.array([1, 1, 1, 0, 0], bool)
    found = Baseline.compared("linear probe", right, run_right)
    assert (found.images, found.right, found.run_right, found.gained, found.lost) == (5, 2, 3, 2, 1)


def test_always_answering_a_class_means_the_commonest_one_of_training(report_of, predictions_of):
    sure = np.eye(3)[[0, 0, 1, 1, 2]]
    report = report_of(predictions_of([0, 0, 1, 2, 2], sure))
    found = commonest_class_baseline(report.metrics, {"class 0": 3, "class 1": 9, "class 2": 4})
    assert (found.right, found.run_right, found.gained, found.lost) == (1, 4, 3, 0)


def test_a_report_and_its_page_have_the_baselines_and_why_one_is_missing(report_of, random_predictions):
    made = (probe(60, 12), probe(90, 12, name="commonest class"))
    baselines = Baselines(
        made=made, training_images={"linear probe": 1234}, not_made={"nearest neighbours": "no features"}
    )
    report = report_of(random_predictions(images=80, classes=3), baselines=baselines)
    assert Report.from_json(report.to_json()) == report
    assert baselines.verdict in beside(report)
    page = render_html(report, thumbnails={})
    for text in (">1,234</td>", "+12.0 points (8.0 to 16.0)", "not made: no features", baselines.verdict):
        assert text in page
    told = baselines_for_programs(baselines)
    assert told["made"]["linear probe"]["difference"] == 0.12
    assert told["not_made"] == {"nearest neighbours": "no features"}
