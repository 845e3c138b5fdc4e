"""The index of a storage, and the pages that it links to, from a bucket as from a folder."""

import hashlib
import os
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from tests.published import publish_some
from tests.runs import sweep, trial
from transfer.errors import ConfigError
from transfer.evaluation.metrics import Tally
from transfer.evaluation.predictions import Predictions
from transfer.evaluation.report import Report
from transfer.nights.records import End
from transfer.pages import contents as contents_module
from transfer.pages.contents import read_contents
from transfer.pages.page import page_about
from transfer.pages.write import write_pages
from transfer.storage import open_store, put_content, put_document
from transfer.training.run import read_start
from transfer.tuning.lr_curve import FoundRate, RateCurve
from transfer.tuning.page import render as render_sweep

MODEL = "flowers"


def report_of(run_id, *, right):
    """A report on three images, of which the model has so many right."""
    labels = np.zeros(3, np.int32)
    answers = np.eye(2, dtype=np.float32)[(np.arange(3) >= right).astype(int)]
    return Report(
        name=MODEL,
        dataset="flowers/00000001",
        run_id=run_id,
        split="test",
        base="b",
        metrics=Tally.of(Predictions(list("abc"), labels, answers, ["x", "y"])).metrics(),
        history=[],
        mistakes=[],
        counts={},
        config={},
    ).to_json()


def put_run(store, run_id, *, model=MODEL, reports=(), **start):
    document = {"identity": {}, "config": {"name": model}, "dataset": {"name": "flowers", "number": 1}, **start}
    put_document(store, f"runs/{run_id}/run.json", document)
    for number in reports:
        report = report_of(run_id, right=number)
        name = f"runs/{run_id}/reports/{number:08d}/report.json"
        store.put(name, report)
        entry = {"split": "test", "files": {"report.json": hashlib.sha256(report).hexdigest()}}
        put_document(store, f"runs/{run_id}/reports/{number:08d}.json", entry)
        store.put(f"runs/{run_id}/reports/{number:08d}/report.html", f"report {number} of {run_id}".encode())


def begin_night(store, number, *, model=MODEL):
    put_document(store, f"nights/{model}/{number:08d}.json", {"started": "then", "config": f"digest {number}"})


def put_night(store, number, *, model=MODEL):
    begin_night(store, number, model=model)
    folder = f"nights/{model}/{number:08d}"
    _, page = put_content(store, f"{folder}/page/{{}}.html".format, b"a night")
    end = End(outcome="kept", reason="It is <b>worse</b>.", ended="now", summary="0", page=page)
    put_document(store, f"{folder}/end.json", end.model_dump())


def put_sweep(store):
    result = sweep([trial(1, run_id="run-0", value=0.7), trial(2, run_id="a-trial", value=0.6)], name=MODEL)
    put_document(store, f"sweeps/{result.id}/sweep.json", {})
    _, page = put_content(store, f"sweeps/{result.id}/results/{{}}.html".format, render_sweep(result).encode())
    ended = {"result": result.model_dump(mode="json"), "page": page}
    put_document(store, f"sweeps/{result.id}/results/00000001.json", ended)


def put_range_test(store, test_id, *, model=MODEL):
    found = FoundRate(
        id=test_id,
        name=model,
        dataset="flowers/00000001",
        base="MobileNetV2",
        phase=1,
        unfreeze=2,
        optimizer="adam",
        batch_size=32,
        curve=RateCurve(rates=(0.1,), losses=(1.0,), diverged=False),
        suggestion=0.02,
        tenth_of_minimum=0.01,
    )
    _, page = put_content(store, f"lr_find/{test_id}/{{}}.html".format, b"a range test")
    put_document(store, f"lr_find/{test_id}/curve.json", {"found": found.model_dump(mode="json"), "page": page})


@pytest.fixture
def filled(store):
    publish_some(store, 2, promoted=[1], model=MODEL)
    put_run(store, "run-0", reports=[1, 2], started_by=f"nights/{MODEL}/00000001")
    put_run(store, "a-trial")
    # What is left of a run that is being removed is no run.
    store.put("runs/removed/reports/00000001.json", b"{}")
    put_night(store, 1)
    put_run(store, "of-another", model="pets", reports=[1])
    put_night(store, 1, model="pets")
    return store


def index_of(store, folder):
    return write_pages(store, read_contents(store), folder).read_text()


def links_of(html):
    return {unquote(href) for href in re.findall(r'href="([^"]*)"', html)}


def test_every_link_of_the_index_leads_to_a_page_beside_it_or_to_a_model(filled, tmp_path):
    index = index_of(filled, tmp_path / "pages")
    links = links_of(index)
    files = {"run run-0.html", "run of-another.html", "night flowers 1.html", "night pets 1.html"}
    assert links == {*files, "#model-flowers", "#model-pets"}
    assert set(re.findall(r'id="([^"]*)"', index)) == {"model-flowers", "model-pets"}
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"index.html", *files}
    # The newest report of a run.
    assert (tmp_path / "pages/run run-0.html").read_bytes() == b"report 2 of run-0"
    assert "1 of 2 serves" in index
    assert "It is &lt;b&gt;worse" in index
    assert "2 evaluated, 1 not evaluated" in index
    # A run leads to the night that started it.
    assert '<a href="night%20flowers%201.html">night 1</a>' in index


def test_a_night_that_is_not_over_has_a_row_without_a_page(store, tmp_path):
    put_night(store, 1)
    begin_night(store, 2)
    begin_night(store, 3)
    contents = read_contents(store)
    assert [(night.number, night.outcome) for night in contents.nights.shown] == [
        (3, "interrupted"),
        (2, "given up"),
        (1, "kept"),
    ]
    assert page_about(store, "night", model=MODEL).file == "night flowers 1.html"
    write_pages(store, contents, tmp_path)
    assert "night 3 began with another configuration" in (tmp_path / "index.html").read_text()


def test_sweeps_and_range_tests_are_there_and_a_sweep_leads_to_the_pages_of_its_runs(filled, tmp_path):
    put_sweep(filled)
    put_range_test(filled, "test-1")
    index = index_of(filled, tmp_path)
    assert "70.0 %" in index
    assert "1, last 2 blocks" in index
    assert (tmp_path / "rate test-1.html").read_bytes() == b"a range test"
    (page,) = tmp_path.glob("sweep *.html")
    links = re.findall(r'<a href="([^"]*)"', page.read_text())
    # The other trial was not evaluated: it has no page.
    assert {unquote(link) for link in links} == {"run run-0.html"}


def test_the_index_says_how_good_what_serves_is_and_how_to_use_it(filled, tmp_path):
    index = index_of(filled, tmp_path)
    assert re.search("version 1</td>.*90.0 %.*version 1 was better", index)
    assert 'load_model("flowers", ' in index


def test_a_run_is_listed_with_the_accuracy_of_its_newest_report(filled, tmp_path):
    filled.remove("runs/of-another/reports/00000001/report.json")
    runs = {run.id: (run.accuracy, run.split) for run in read_contents(filled).runs.shown}
    assert runs == {"run-0": (2 / 3, "test"), "of-another": (None, "test")}
    assert re.search(r'run-0</a></td><td>flowers/00000001</td><td class="n">66\.7 %</td>', index_of(filled, tmp_path))


def test_tables_are_short_and_only_what_they_show_is_read(tmp_path, folder_storage, monkeypatch):
    monkeypatch.setattr(contents_module, "ROWS", 2)
    store = open_store(folder_storage)
    put_sweep(store)
    for number in range(5):
        put_run(store, f"run-{number}", reports=[1])
        os.utime(Path(store.uri, f"runs/run-{number}/reports/00000001.json"), (0, 1000 - number))
    put_run(store, "a-newer-run", reports=[1])
    read = []
    monkeypatch.setattr(contents_module, "read_start", lambda store, id_: read.append(id_) or read_start(store, id_))
    contents = read_contents(store)
    # By the clock of the storage, whatever the ids are.
    assert [run.id for run in contents.runs.shown] == ["a-newer-run", "run-0"]
    assert (sorted(read), contents.runs.more) == (["a-newer-run", "run-0"], 4)
    os.utime(Path(store.uri, "runs/run-0/reports/00000001.json"), (0, 1))
    # The run that won the sweep leads to its page, although the table of runs has no room for it.
    index = index_of(store, tmp_path)
    assert "And 4 more" in index
    assert {link for link in links_of(index) if link.startswith("run ")} == {
        "run a-newer-run.html",
        "run run-1.html",
        "run run-0.html",
    }


def test_a_page_is_found_by_what_it_is_about(filled):
    put_sweep(filled)
    put_range_test(filled, "test-1")
    (sweep_id,) = {item.name.split("/")[1] for item in filled.list("sweeps/")}
    wanted = ["night", "1", "run-0", "of-another", sweep_id, "test-1"]
    assert [page_about(filled, what, model="pets").file for what in wanted] == [
        "night pets 1.html",
        "night pets 1.html",
        "run run-0.html",
        "run of-another.html",
        f"sweep {sweep_id}.html",
        "rate test-1.html",
    ]
    for nothing in ("run-9", "7", "a-trial", "runs/run-0"):
        with pytest.raises(ConfigError, match=f"no page `{nothing}` in "):
            page_about(filled, nothing, model="pets")


def test_a_storage_without_anything_has_an_index(store, tmp_path):
    assert "There are none yet" in index_of(store, tmp_path)
    assert [path.name for path in tmp_path.glob("*.html")] == ["index.html"]


def test_the_command_opens_the_index_of_a_storage_by_its_address(answer_of, transfer, tmp_path, folder_storage):
    publish_some(open_store(folder_storage), 1, promoted=[1], model=MODEL)
    page = answer_of("open", "--storage", folder_storage.uri, "--to", tmp_path / "pages")["page"]
    assert 'id="model-flowers"' in Path(page).read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Neither a configuration nor a storage"),
        (["config.yaml", "--storage", "x"], "Both a configuration and a storage"),
        (["--storage", "/no/where"], "there is nothing at /no/where"),
        (["--storage", ""], "there is nothing at"),
        (["--storage", "/", "--set", "name=x"], "--set"),
    ],
)
def test_the_command_says_what_it_needs(transfer, arguments, said):
    done = transfer("open", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
