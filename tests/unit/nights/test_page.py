"""A night's page says what was decided and why, for every outcome."""

import re
from html.parser import HTMLParser

import pytest

from tests.contenders import FINDINGS, alone, changed, compared, night
from transfer.config import GateConfig
from transfer.nights.page import render_night
from transfer.reports.thumbnails import Thumbnail

EVIL = "<script>alert('x')</script>"
OUTCOMES = ["promoted", "kept", "nothing new", "refused", "failed"]
SECTIONS = ["Champion and challenger", "The gate", "Classes", "Images that flipped", "New images"]


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, headings, and the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.headings = [], "", []
        self.feed(html[html.index("</style>") :] if "</style>" in html else html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "h2":
            self.headings.append("")

    def handle_data(self, data):
        self.text += data
        if self.elements and self.elements[-1][0] == "h2" and data.strip():
            self.headings[-1] += data

    def attributes(self, *names):
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in names]

    def count(self, tag):
        return sum(found == tag for found, _ in self.elements)


def page(summary, thumbnails=None, earlier=()):
    return Page(render_night(summary, thumbnails or {}, earlier=earlier))


def pictures(comparison):
    return {flip.sha256: Thumbnail(f"data:image/png;base64,{flip.sha256[:8]}", 32, 32) for flip in comparison.flips}


def many_classes(count):
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize(
    ("outcome", "headline"),
    [
        ("promoted", "Promoted Version 12 serves now, instead of version 9."),
        ("kept", "Kept Version 12 was not promoted over version 9."),
        ("nothing new", "Nothing new There was nothing new."),
        ("refused", "Refused The new data was refused, and nothing was trained on it."),
        ("failed", "Failed The night failed."),
    ],
)
def test_each_outcome_has_its_page(outcome, headline):
    text = page(night(outcome)).text
    why = (
        "The challenger passed all rules of the gate, 5 of 5."
        if outcome == "promoted"
        else f"Because it was {outcome}."
    )
    assert headline in text
    assert "Night 14, 2026-03-01 02:00 to 2026-03-01 02:01 UTC" in text
    assert why in text


def test_a_page_has_the_sections_of_what_is_known_and_no_others():
    assert page(night("kept")).headings == [*SECTIONS, "Checks of the data", "Time"]
    assert page(night("refused")).headings == ["New images", "Checks of the data", "Time"]
    for outcome in ("nothing new", "failed"):
        assert page(night(outcome)).headings == ["Time"]
        assert page(night(outcome, steps=(), dataset=None, champion=None)).headings == []


def test_both_models_stand_side_by_side_with_their_intervals_and_the_difference():
    text = page(night("promoted")).text
    assert "Challenger, version 12Champion, version 9Change" in text
    assert "Accuracy86.7 %71.7 %+15.0 points" in text
    assert "One image10.0 ms10.0 ms× 1.00" in text
    assert "Files14.0 MiB14.0 MiB× 1.00" in text
    comparison = compared()
    for side in (comparison.challenger, comparison.champion):
        interval = side.metrics.accuracy_interval
        assert f"{100 * interval.low:.1f} % to {100 * interval.high:.1f} %" in text
    assert f"{100 * comparison.interval.low:+.1f} points to {100 * comparison.interval.high:+.1f} points" in text
    assert "12 images gained, 3 lost: p = 0.0176 by McNemar's exact test" in text


def test_every_rule_is_on_the_page_with_its_answer():
    summary = night("kept", gate=GateConfig(min_accuracy=0.99))
    found = page(summary).text
    assert found.count("✓ passed") == 5 + 1  # One check of the data is passed, too, and one was skipped.
    assert found.count("skipped") == 1
    assert found.count("✗ failed") == 1
    for rule in summary.decision.rules:
        assert rule.text in found


def test_checks_say_what_was_found_and_which_only_warned():
    found = page(night("refused")).text
    assert found.count("! warned") == 1
    assert "drift0.910.8New images look different." in found
    assert "agreement–0.25Only 5 images are new." in found
    refusal = FINDINGS[0].model_copy(update={"passed": False})
    assert "✗ refused" in page(night("refused", findings=(refusal,))).text


def test_what_was_refused_is_said_with_its_reasons_and_where_it_is_listed():
    refused = {"rejected": 3, "rejects": {"no_label": 1, "unreadable": 2}, "ledger": "rejects/ab.parquet"}
    change = changed().model_copy(update=refused)
    text = page(night("kept", change=change)).text
    assert "3 files refused: 1 no label, 2 unreadable; listed in rejects/ab.parquet." in text


def test_classes_that_lost_most_come_first_and_many_are_folded():
    comparison = compared(both=160, gained=20, lost=20, neither=0, classes=many_classes(40))
    html = render_night(night("kept", comparison=comparison), {})
    assert "The other 10 classes" in html
    changes = [float(change) for change in re.findall(r"<b>(\S+) points</b>", html)]
    assert len(changes) == 40
    assert changes == sorted(changes)
    assert changes[0] < 0 < changes[-1]
    assert page(night("kept")).count("details") == 0


def test_a_class_that_is_new_to_the_champion_is_said_to_be():
    comparison = compared()
    rows = [comparison.classes[0].model_copy(update={"champion": None}), *comparison.classes[1:]]
    text = page(night("kept", comparison=comparison.model_copy(update={"classes": rows}))).text
    assert "1 class is new to the champion; its answers for those images count as wrong." in text
    assert "new to the champion" in text


def test_flips_have_a_gallery_each_way_with_pictures_or_their_place():
    comparison = compared(gained=40, lost=3)
    some = pictures(comparison)
    missing = comparison.flips[0].sha256
    del some[missing]
    found = page(night("promoted", comparison=comparison), some)
    assert "Right before, wrong now: 3 images" in found.text
    assert "Wrong before, right now: 40 images, 24 of them shown" in found.text
    assert (found.count("img"), found.count("figure")) == (26, 27)
    assert found.text.count("no picture") == 1
    assert len(re.findall(r"before: [a-z]+\b", found.text)) == 24
    assert len(re.findall(r"now: [a-z]+\b", found.text)) == 3


def test_without_flips_there_is_no_gallery():
    assert "Images that flipped" not in page(night("kept", comparison=compared(gained=0, lost=0))).headings


def test_what_came_in_is_told_for_each_class():
    text = page(night("refused")).text
    assert "flowers/00000003 beside flowers/00000002, which the champion was trained on." in text
    assert "1 shard of 7 is new. 2 files refused." in text
    assert "rose107 · +5 · −1" in text
    first = page(night("refused", change=changed(before=None))).text
    assert "flowers/00000003; there is no champion to compare its data with." in first
    assert "The other 10 classes" in page(night("refused", change=changed(many_classes(40)))).text


def test_steps_are_listed_with_what_they_took():
    text = page(night("failed")).text
    assert "train1 min 2 sRun flowers-0123456789ab on 843 images." in text
    assert "Took1 min 6 s" in text


def test_a_first_model_has_nothing_beside_it():
    summary = night("promoted", comparison=alone(), champion=None)
    found = page(summary)
    assert "Version 1 serves now, the first one." in found.text
    assert "There is no champion to compare with." in found.text
    assert "The challenger" in found.headings
    assert "Difference" not in found.text


def test_the_verdict_says_how_often_it_is_right_and_what_that_is_set_beside():
    text = page(night("kept")).text
    assert "Version 12 is right for 52 of 60 held-out images (95 % interval 75.8 % to 93.1 %)" in text
    assert "version 9 is right for 43, and always answering daisy would be right for 20." in text


def test_other_settings_than_the_champions_are_named():
    text = page(night("kept", other_settings=("head.dropout", "phases[0].learning_rate"))).text
    assert "the champion was trained with other values of head.dropout, phases[0].learning_rate." in text
    assert "trained with other values" not in page(night("kept")).text


def test_the_trend_shows_earlier_nights_from_the_second_with_figures_on():
    earlier = [night("promoted", night=12), night("nothing new", night=13)]
    assert "Trend" not in page(night("failed"), earlier=earlier).headings
    found = page(night("kept"), earlier=earlier)
    assert "Trend" in found.headings
    assert "Nights 12 to 14: 1 promoted, 1 nothing new, 1 kept." in found.text
    assert "zoomed, not from 0" in found.text
    assert page(night("kept"), earlier=[night("failed", night=13)]).count("svg") == 0


def test_a_night_with_nothing_new_shows_what_the_version_that_serves_was_found_to_be():
    earlier = [night("kept", night=12), night("failed", night=13)]
    text = page(night("nothing new"), earlier=earlier).text
    assert "Accuracy of version 9, which serves71.7 %" in text
    assert "on 60 held-out images, in night 12" in text
    assert "which serves" not in page(night("nothing new", champion=8), earlier=earlier).text


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_page_refers_to_nothing_at_all(outcome):
    comparison = compared()
    html = render_night(night(outcome), pictures(comparison), earlier=[night("kept", night=12)] * 2)
    found = Page(html)
    references = found.attributes("src", "href", "xlink:href", "data", "action", "srcset")
    assert all(reference.startswith(("data:image/", "#")) for reference in references)
    assert {"script", "link", "iframe", "a"}.isdisjoint(tag for tag, _ in found.elements)
    assert "default-src 'none'" in html
    assert html.count("url(") == html.count("url(#")


def test_what_users_wrote_is_shown_as_text():
    comparison = compared(classes=[EVIL, "$x$", "{{ 7 * 7 }}"])
    evil = comparison.model_copy(
        update={"flips": tuple(flip.model_copy(update={"key": f'"{EVIL}'}) for flip in comparison.flips)}
    )
    finding = FINDINGS[1].model_copy(update={"text": EVIL})
    change = changed([EVIL, "b", "c"])
    html = render_night(
        night("kept", comparison=evil, findings=(finding,), change=change, reason=EVIL, name=EVIL, run=EVIL), {}
    )
    assert "<script" not in html
    assert Page(html).count("script") == 0
    assert Page(html).text.count(EVIL) > 8
    assert "{{ 7 * 7 }}" in Page(html).text


def test_every_element_that_is_opened_is_closed():
    html = render_night(night("kept", comparison=compared(gained=30, lost=30, classes=many_classes(40))), {})
    for tag in ("div", "table", "tr", "td", "span", "dl", "dd", "dt", "section", "figure", "details", "b", "i", "p"):
        assert html.count(f"<{tag}>") + html.count(f"<{tag} ") == html.count(f"</{tag}>"), tag


def test_the_same_night_gives_the_same_page():
    assert render_night(night("kept"), pictures(compared())) == render_night(night("kept"), pictures(compared()))
