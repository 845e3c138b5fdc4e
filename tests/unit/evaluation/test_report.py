import ast
import json
import math
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from pydantic import ValidationError

from tests.images import encoded
from transfer.catalog.run import EpochRow
from transfer.config import BaseNetworkConfig
from transfer.errors import DatasetError
from transfer.evaluation.page import render_html
from transfer.evaluation.report import Report
from transfer.training.history import FinalEpoch

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, the text, and the ids."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.styles = [], "", ""
        self._inside = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self._inside:
            self.styles += data
        else:
            self.text += data

    def attributes(self, *names):
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in names]

    def count(self, tag):
        return sum(found == tag for found, _ in self.elements)


@pytest.fixture
def evil_report(random_predictions, report_of):
    """Every text that comes from the user is markup, a formula or unprintable."""
    names = [EVIL, "a\"b'c&amp;", "$\\frac{1}{$", "日本語 🐈", "line\nbreak\x00", "x" * 300, "--><b>", "{{ 7 * 7 }}"]
    predictions = random_predictions(images=200, classes=len(names), names=names)
    object.__setattr__(predictions, "keys", [f'{EVIL}"{key}' for key in predictions.keys])
    changes = {"name": EVIL, "base": EVIL, "run_id": EVIL, "dataset": EVIL, "config": {EVIL: [EVIL]}}
    return report_of(predictions, **changes)


def test_report_read_back_from_json_is_the_same_report(random_predictions, report_of):
    report = report_of(random_predictions(images=60, classes=7))
    data = report.to_json()
    assert Report.from_json(data) == report
    assert Report.from_json(data).to_json() == data


def test_the_page_says_how_images_came_to_be_in_their_splits(random_predictions, report_of):
    report = report_of(random_predictions(images=60, classes=3), split_by="train, test as given by folders")
    assert "Splits: train, test as given by folders." in render_html(report, thumbnails={})


def test_report_json_keeps_what_was_not_measured_apart_from_zero(predictions_of, report_of):
    report = report_of(predictions_of([0, 1], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]))
    assert b"NaN" not in report.to_json()
    assert Report.from_json(report.to_json()).metrics.per_class[2].recall is None


def test_number_that_is_not_finite_cannot_get_into_a_report(random_predictions, report_of):
    predictions = random_predictions(images=10, classes=2)
    with pytest.raises(ValidationError):
        EpochRow(phase=0, epoch=0, loss=math.nan, accuracy=0.5, learning_rate=1e-3, seconds=1.0)
    with pytest.raises(ValidationError):
        report_of(predictions, config={"phases": [{"rate": math.nan}]})


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"name": 3}'])
def test_other_bytes_are_refused_as_a_report(data):
    with pytest.raises(DatasetError, match="not a report"):
        Report.from_json(data)


def test_page_refers_to_nothing_outside_itself(random_predictions, report_of):
    report = report_of(random_predictions(images=80, classes=6))
    thumbnails = {mistake.sha256: encoded(20, 20) for mistake in report.mistakes}
    page = Page(render_html(report, thumbnails=thumbnails))

    references = page.attributes("src", "href", "xlink:href", "data", "action", "srcset", "poster")
    assert page.count("img") == len(report.mistakes) > 0
    assert all(reference.startswith(("data:image/", "#")) for reference in references)
    assert {"script", "link", "iframe", "object", "embed", "base", "form"}.isdisjoint(tag for tag, _ in page.elements)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    inline = page.styles + " ".join(page.attributes("style", "clip-path", "fill"))
    assert "@import" not in inline
    assert all(part.startswith("#") for part in inline.split("url(")[1:])
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_every_id_is_unique_and_every_reference_to_one_is_answered(random_predictions, report_of):
    page = Page(render_html(report_of(random_predictions(images=80, classes=6)), thumbnails={}))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    used = [value.removeprefix("#") for value in page.attributes("href", "xlink:href")]
    used += [value.removeprefix("url(#").removesuffix(")") for value in page.attributes("clip-path")]
    assert used
    assert set(used) <= set(ids)


def test_markup_in_names_keys_and_configuration_is_shown_as_text(evil_report):
    html = render_html(evil_report, thumbnails={})
    page = Page(html)
    assert "<script" not in html
    assert page.count("script") == 0
    assert "--><b>" not in html
    assert page.text.count(EVIL) >= 8
    assert "{{ 7 * 7 }}" in page.text


def test_class_names_in_the_chart_are_text_and_not_formulas(evil_report):
    html = render_html(evil_report, thumbnails={})
    chart = html[html.index('aria-label="confusion"') :]
    chart = chart[: chart.index("</svg>")]
    assert "$\\frac{1}{$" in Page(chart).text
    assert "日本語" in Page(chart).text
    assert "\x00" not in chart
    assert "x" * 18 not in chart


def test_mistakes_with_one_key_are_shown_with_their_own_pictures(random_predictions, report_of):
    report = report_of(random_predictions(images=80, classes=6))
    first, second = (each.model_copy(update={"key": "one.png"}) for each in report.mistakes[:2])
    report = report.model_copy(update={"mistakes": [first, second]})
    thumbnails = {first.sha256: encoded(9, 9), second.sha256: encoded(12, 9)}
    page = Page(render_html(report, thumbnails=thumbnails))
    assert len(set(page.attributes("src"))) == 2


@pytest.mark.parametrize("broken", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_picture_becomes_a_placeholder(random_predictions, report_of, broken):
    report = report_of(random_predictions(images=80, classes=6))
    first, *others = report.mistakes
    page = Page(
        render_html(report, thumbnails={first.sha256: broken} | {other.sha256: encoded(9, 9) for other in others})
    )
    assert page.text.count("no picture") == 1
    assert page.count("img") == len(others)


@pytest.mark.parametrize(
    "classes", [2, 31, *(pytest.param(count, marks=pytest.mark.proof) for count in (14, 15, 20, 30, 150, 200))]
)
def test_page_is_drawn_for_few_and_many_classes(random_predictions, report_of, classes):
    report = report_of(random_predictions(images=600, classes=classes))
    html = render_html(report, thumbnails={})
    page = Page(html)
    assert page.count("svg") == 4
    assert all(row.name in page.text for row in report.metrics.per_class)
    # The large matrix is one picture; drawn cell by cell it would be megabytes.
    assert len(html) < 700_000
    assert ("image" in {tag for tag, _ in page.elements}) == (classes > 30)


def test_large_matrix_still_names_the_most_confused_classes(random_predictions, report_of):
    report = report_of(random_predictions(images=2000, classes=150))
    counts = {
        (truth, predicted): count
        for truth, row in enumerate(report.metrics.confusion)
        for predicted, count in enumerate(row)
        if truth != predicted
    }
    truth, predicted = max(counts, key=lambda pair: (counts[pair], -report.metrics.per_class[pair[0]].support))
    text = Page(render_html(report, thumbnails={})).text
    start = text.index("Most confused")
    assert text.index(f"class {truth} → class {predicted}", start) < start + 200


def test_page_of_a_perfect_single_image_without_history_or_counts_is_drawn(predictions_of, report_of):
    report = report_of(predictions_of([1], [[0.0, 1.0]]), history=[], counts={}, config={})
    text = Page(render_html(report, thumbnails={})).text
    assert "The only image is right." in text
    assert "Training" not in text
    assert "Worst mistakes" not in text


@pytest.mark.parametrize(
    ("answers", "verdict", "right"),
    [
        ([0, 0, 0], "No better than the commonest class.", "Right for 2 of 3 test images"),
        ([0, 0, 1], "Right for 3 of 3 test images.", "Right for 3 of 3 test images"),
    ],
)
def test_the_verdict_stands_above_the_figures_beside_the_commonest_class(
    predictions_of, report_of, answers, verdict, right
):
    predictions = predictions_of([0, 0, 1], np.eye(2)[answers], ["cat", "dog"])
    text = Page(render_html(report_of(predictions), thumbnails={})).text
    above = text[: text.index("Test accuracy")]
    assert verdict in above
    assert right in above
    assert "Always answering cat would be right for 2 (66.7 %)." in above
    assert ("No better" in above) == ("No better" in verdict)


def test_validation_stands_beside_test_where_it_is_known(random_predictions, report_of):
    counts = {"train": {"class 0": 9}, "validation": {"class 0": 50}}
    report = report_of(random_predictions(images=60, classes=3), validation_accuracy=0.9, counts=counts)
    text = Page(render_html(report, thumbnails={})).text
    assert "Validation accuracy90.0 %78.6 % to 95.7 %" in text
    # Reports of earlier releases say nothing of it.
    document = json.loads(report.to_json())
    del document["validation_accuracy"]
    old = Report.from_json(json.dumps(document).encode())
    assert "Validation accuracy" not in Page(render_html(old, thumbnails={})).text


def test_mistakes_are_grouped_by_what_was_taken_for_what(predictions_of, report_of):
    labels, answers = [0] * 4 + [1] * 4 + [2] * 2, [0, 1, 1, 1, 1, 1, 0, 0, 0, 2]
    rows = 0.85 * np.eye(3)[answers] + 0.05
    report = report_of(predictions_of(labels, rows, ["cat", "dog", "owl"]))
    text = Page(render_html(report, thumbnails={})).text
    text = text[text.index("Worst mistakes") :]
    places = [
        text.index(part)
        for part in ("cat → dog 3 images, 75.0 % of cat", "dog → cat 2 images, 50.0", "Other pairs", "owl → cat")
    ]
    assert places == sorted(places)
    assert text.count("cat → dog") == 1


def test_classes_without_training_images_are_flagged(predictions_of, report_of):
    predictions = predictions_of([0, 1], np.eye(4)[[0, 1]], ["cat", "dog", "owl", "val"])
    counts = {"train": {"cat": 3, "owl": 2, "val": 0}, "test": {"cat": 1, "dog": 1, "val": 0}}
    report = report_of(predictions, counts=counts, untrained_classes=["dog", "val"])
    text = Page(render_html(report, thumbnails={})).text
    assert "2 of 4 classes have no training images and are never answered: dog, val. Each of their images" in text
    assert "dog no training images: never answered" in text
    assert "owl no test images" in text
    assert "val no images any more" in text
    of_earlier_release = report_of(predictions, counts={})
    assert "training images" not in Page(render_html(of_earlier_release, thumbnails={})).text


@pytest.mark.parametrize(("start", "zoomed"), [(0.2, 1), (0.9, 2)])
def test_an_axis_that_does_not_begin_at_zero_says_so(random_predictions, report_of, start, zoomed):
    rows = [
        EpochRow(phase=0, epoch=n, loss=1.0 + 0.01 * n, accuracy=start + (0.95 - start) * n, learning_rate=1, seconds=1)
        for n in range(2)
    ]
    text = Page(render_html(report_of(random_predictions(images=9, classes=3), history=rows), thumbnails={})).text
    # The loss is always flat here.
    assert text.count("zoomed, not from 0") == zoomed


def test_the_lines_that_use_the_model_are_python_and_only_there_for_one_that_is_published(
    random_predictions, report_of
):
    predictions = random_predictions(images=9, classes=3)
    uri = """s3://a "bucket"/it's <here>"""
    html = render_html(report_of(predictions), thumbnails={}, storage=uri)
    code = unescape(html[html.index("<pre>") + 5 : html.index("</pre>")])
    texts = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert {uri, report_of(predictions).name} <= texts
    unpublished = report_of(predictions, config={"publish": {"enabled": False}})
    assert "load_model" not in render_html(unpublished, thumbnails={}, storage=uri)


@pytest.mark.parametrize(
    ("best_by", "value", "said"),
    [
        (None, None, "epoch 3 of 7 of phase 1, the last one"),
        ("loss", 0.25, "epoch 3 of 7 of phase 1, the best by validation loss (0.2500)"),
        ("accuracy", 0.9, "epoch 3 of 7 of phase 1, the best by validation accuracy (90.0 %)"),
    ],
)
def test_the_page_says_which_epochs_weights_were_evaluated(random_predictions, report_of, best_by, value, said):
    kept = FinalEpoch(phase=1, epoch=3, of=7, best_by=best_by, value=value)
    predictions = random_predictions(images=9, classes=3)
    assert said in Page(render_html(report_of(predictions, kept=kept), thumbnails={})).text


@pytest.mark.parametrize(("model", "named"), [("/bases/glyphs.keras", False), ("MobileNetV2", True)])
def test_imagenet_is_not_named_for_a_file_that_brings_its_weights(random_predictions, report_of, model, named):
    base = BaseNetworkConfig(model=model)
    report = report_of(
        random_predictions(images=9, classes=3),
        config={"base": base.model_dump(mode="json")},
        weights=base.weights_title,
    )
    assert ("imagenet" in Page(render_html(report, thumbnails={})).text) is named


@pytest.mark.parametrize("phases", [None, 3, [1], [{"unfreeze": None, "optimizer": "adam"}]])
def test_a_configuration_of_another_release_is_no_reason_to_draw_nothing(random_predictions, report_of, phases):
    text = Page(
        render_html(report_of(random_predictions(images=9, classes=3), config={"phases": phases}), thumbnails={})
    ).text
    assert "Phase 0: phase 0" in text


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_curves_are_drawn_without_validation_for_any_number_of_epochs(random_predictions, report_of, epochs):
    rows = [
        EpochRow(phase=epoch, epoch=epoch, loss=0.0, accuracy=1.0, learning_rate=1e-3, seconds=0.1)
        for epoch in range(epochs)
    ]
    text = Page(render_html(report_of(random_predictions(images=9, classes=3), history=rows), thumbnails={})).text
    assert "validation" not in text
    # Named where there is room.
    assert (" last 2 blocks\n" in text) == (epochs == 2)


def test_worst_class_comes_first_and_the_unmeasured_one_last(predictions_of, report_of):
    rows = [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.8, 0.2, 0.0], [0.9, 0.1, 0.0]]
    report = report_of(predictions_of([0, 1, 1, 0], rows, ["good", "bad", "absent"]))
    text = Page(render_html(report, thumbnails={})).text
    table = text[text.index("Worst first") :]
    assert table.index("bad") < table.index("good") < table.index("absent")
    assert "1 class has no images" in text


@pytest.mark.parametrize(
    ("right", "images", "shown"), [(4000, 4000, "100.0"), (3999, 4000, ">99.9"), (1, 4000, "<0.1"), (0, 4000, "0.0")]
)
def test_accuracy_is_never_rounded_to_all_or_nothing(predictions_of, report_of, right, images, shown):
    rows = [[0.9, 0.1]] * right + [[0.1, 0.9]] * (images - right)
    report = report_of(predictions_of([0] * images, rows), mistakes=[])
    assert f"Test accuracy{shown} %" in Page(render_html(report, thumbnails={})).text
