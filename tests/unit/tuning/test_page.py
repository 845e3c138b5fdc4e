"""A sweep's page: everything that was tried is on it, whatever it was."""

from html.parser import HTMLParser

import pytest

from tests.runs import failed, sweep, trial
from transfer.tuning.page import render

EVIL = "<script>alert('x')</script>"
RATE = "phases.0.learning_rate"


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def attributes(self, *names):
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in names]

    def count(self, tag):
        return sum(found == tag for found, _ in self.elements)


def charts_of(html):
    return [value for value in Page(html).attributes("aria-label") if value]


def grid(depths=(0, 1), rates=(1e-4, 1e-3, 1e-2)):
    pairs = [(depth, rate) for depth in depths for rate in rates]
    return [
        trial(
            number,
            {"phases.0.unfreeze": depth, RATE: rate},
            value=0.5 + 0.01 * number,
            depth=depth,
            packed_with=1 if depth else len(rates),
        )
        for number, (depth, rate) in enumerate(pairs, start=1)
    ]


def test_page_says_what_won_with_which_values_and_by_how_much():
    text = Page(render(sweep(grid()))).text
    assert "Best accuracy56.0 %" in text
    assert "trial 5 with 55.0 %, 1.0 points behind" in text
    assert "trial 6, run digits-000000000006" in text
    assert "The sweep ended because every trial ended." in text


def test_the_verdict_has_an_interval_and_says_how_many_trials_are_within_it():
    result = sweep(grid(), images=200)
    text = Page(render(result)).text
    above = text[: text.index("Best accuracy")]
    assert "Trial 6 wins: right for 112 of 200 validation images." in above
    assert "The 95 % interval is 49.1 % to 62.7 %. 5 of 5 other trials lie within it" in above
    assert text.count("49.1 % to 62.7 %") == 2  # in the table, too
    assert "None of the 5 other trials lies within it." in Page(render(sweep(grid(), images=20_000))).text
    folded = Page(render(sweep(grid(), images=200, folds=5))).text
    assert "right for 112 of 200 held-out images" in folded


@pytest.mark.parametrize("changes", [{"metric": "loss", "images": 200}, {}])
def test_a_loss_and_a_result_of_an_earlier_release_have_no_interval(changes):
    text = Page(render(sweep(grid(), **changes))).text
    assert "interval" not in text
    assert "wins with a validation" in text


def test_choices_of_a_learning_rate_stand_on_a_logarithmic_axis():
    html = render(sweep(grid(depths=(0,), rates=(1e-3, 3e-3, 1e-2))))
    chart = html[html.index('aria-label="rate-') :]
    labels = Page(chart[: chart.index("</svg>")]).text.split()
    assert {"0.001", "0.002", "0.005", "0.01"} <= set(labels)


def test_the_winner_stands_first_even_beside_a_tie():
    trials = [trial(1, {"head.dropout": 0.1}, value=0.7, depth=1), trial(2, {"head.dropout": 0.2}, value=0.7)]
    page = Page(render(sweep(trials)))
    assert "trial 1 with 70.0 %, equal" in page.text
    in_table = [href.split("/")[-2] for href in page.attributes("href") if href.endswith("run.json")][1:]
    assert in_table == ["digits-000000000002", "digits-000000000001"]


def test_with_loss_as_the_metric_the_lowest_is_best():
    trials = [trial(1, value=0.9), trial(2, value=0.3), trial(3, value=0.31)]
    text = Page(render(sweep(trials, metric="loss"))).text
    assert "Best loss0.3000" in text
    assert "trial 3 with 0.3100, 0.0100 behind" in text


def test_the_page_of_a_winner_that_was_stopped_says_so_and_what_a_scheduler_stopped_is_not_above_it():
    trials = [
        trial(1, value=0.7),
        trial(2, value=0.9, status="stopped", stopped_by="target", reason="trial 2 reached the target"),
        trial(3, value=0.95, status="stopped", stopped_by="scheduler", reason="by asha"),
    ]
    page = Page(render(sweep(trials)))
    assert "Best accuracy90.0 %" in page.text
    assert "trial 1 with 70.0 %, 20.0 points behind" in page.text
    assert "those of its epoch 3; its run is trained to its end" in page.text
    without_the_first = Page(render(sweep(trials[1:]))).text
    assert "trial 3 with 95.0 %, 5.0 points ahead when it was stopped by asha" in without_the_first


def test_each_depth_has_a_line_of_its_own_color_in_the_chart_of_each_learning_rate():
    html = render(sweep(grid(depths=(0, 1, 3))))
    assert charts_of(html) == ["parallel-coordinates", "rate-phases-0-learning-rate", "cost"]
    for number in (1, 2, 3):
        assert html.count(f"var(--series-{number})") > 6
    assert "var(--series-4)" not in html.replace("--series-4:", "")


def test_a_space_without_a_learning_rate_has_no_such_chart():
    trials = [trial(n, {"head.hidden": hidden}) for n, hidden in enumerate([[], [64], [128, 64]], start=1)]
    html = render(sweep(trials))
    assert charts_of(html) == ["parallel-coordinates", "cost"]
    assert "[128, 64]" in Page(html).text


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(1)],
        [failed(1), failed(2)],
        [trial(1, {})],
        [trial(1, {"a.b": "x"}), trial(2, {"a.c": None})],
        [trial(1, {"phases.0.unfreeze": "all"}, depth="all"), trial(2, {"phases.0.unfreeze": 2}, depth=2)],
        [trial(1, {RATE: 1e-3}), trial(2, {RATE: 1e-3}, value=0.6)],
        [trial(n, {RATE: 10 ** (-n / 40), "training.seed": n, "head.dropout": n / 400}) for n in range(1, 201)],
    ],
    ids=["none", "one", "failed", "no-keys", "other-keys", "names", "equal", "many"],
)
def test_page_can_be_made_of_any_sweep(trials):
    page = Page(render(sweep(trials)))
    assert page.count("tr") >= len(trials)
    assert len(page.attributes("id")) == len(set(page.attributes("id")))


def test_failures_are_counted_and_told_in_words():
    trials = [trial(1), failed(2, reason="out of memory on gpu 0"), failed(3)]
    text = Page(render(sweep(trials))).text
    assert "Failed2" in text
    assert "out of memory on gpu 0" in text
    assert "The loss became nan in phase 0." in text


def test_packed_trials_are_marked_and_cost_their_share():
    text = Page(render(sweep(grid(depths=(0,))))).text
    assert "packed × 3" in text
    assert "2.0 " in text  # 3 epochs of 2 seconds, for 3 trials.
    assert "packed ×" not in Page(render(sweep([trial(1)]))).text


def test_numbers_lead_to_the_runs():
    html = render(sweep([trial(1, run_id="a b<c")]), root="..")
    assert "../runs/a%20b%3Cc/run.json" in Page(html).attributes("href")


def test_what_users_wrote_is_shown_as_text():
    values = {f"head.{EVIL}": EVIL, "$\\frac{1}{$": ["$x", "--><b>"]}
    trials = [
        trial(1, values, run_id=EVIL, depth=EVIL, trained_flops=1.0),
        failed(2, values, reason=EVIL + "{{ 7 * 7 }}"),
    ]
    html = render(sweep(trials, name=EVIL, id=EVIL, dataset=EVIL, search=EVIL, scheduler=EVIL, ended_by=EVIL))
    page = Page(html)
    assert "<script" not in html
    assert page.count("b") == Page(render(sweep([trial(1), failed(2)]))).count("b")
    assert "{{ 7 * 7 }}" in page.text


def test_page_refers_to_nothing_outside_but_runs():
    page = Page(render(sweep(grid())))
    references = page.attributes("src", "href", "xlink:href", "data", "action", "srcset")
    assert all(reference.startswith(("#", "../../../runs/")) for reference in references)
    assert {"script", "link", "iframe", "img"}.isdisjoint(tag for tag, _ in page.elements)
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'")


def test_the_same_result_gives_the_same_page():
    assert render(sweep(grid())) == render(sweep(grid()))


def test_trials_without_a_run_of_their_own_have_no_link():
    html = render(sweep([trial(1, run_id="", value=0.7), trial(2, run_id="", value=0.6)], folds=5))
    assert not [href for href in Page(html).attributes("href") if href]
    assert "by cross-validation over 5 folds" in Page(html).text
    assert "validation split" not in Page(html).text
    assert "Numbers lead to" not in Page(html).text
