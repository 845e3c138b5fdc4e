import math
from html.parser import HTMLParser

import pytest
from pydantic import ValidationError

from transfer.errors import DatasetError
from transfer.evaluation.report import Report, render_html
from transfer.training.history import EpochRow

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


def test_page_refers_to_nothing_outside_itself(random_predictions, report_of, encoded):
    report = report_of(random_predictions(images=80, classes=6))
    thumbnails = {mistake.key: encoded(20, 20) for mistake in report.mistakes}
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


@pytest.mark.parametrize("broken", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_picture_becomes_a_placeholder(random_predictions, report_of, encoded, broken):
    report = report_of(random_predictions(images=80, classes=6))
    first, *others = report.mistakes
    page = Page(render_html(report, thumbnails={first.key: broken} | {other.key: encoded(9, 9) for other in others}))
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


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_curves_are_drawn_without_validation_for_any_number_of_epochs(random_predictions, report_of, epochs):
    rows = [
        EpochRow(phase=epoch, epoch=epoch, loss=0.0, accuracy=1.0, learning_rate=1e-3, seconds=0.1)
        for epoch in range(epochs)
    ]
    text = Page(render_html(report_of(random_predictions(images=9, classes=3), history=rows), thumbnails={})).text
    assert "validation" not in text
    assert ("phase 1" in text) == (epochs == 2)


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
    assert f"Accuracy{shown}\u202f%" in Page(render_html(report, thumbnails={})).text
