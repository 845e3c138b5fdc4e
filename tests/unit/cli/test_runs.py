"""The commands `transfer runs …`, called in this process."""

import re
from functools import partial

import pytest

from tests.published import publish_some
from tests.runs import run_config, store_run
from transfer.config.reference import render
from transfer.storage import open_store


@pytest.fixture
def config(tmp_path, folder_storage):
    store = open_store(folder_storage)
    store_run(store, "run-0", [0.9, 0.4, 0.5])
    store_run(store, "run-1", [0.9, 0.4], complete=False, started="2021-01-01T00:00:00+00:00")
    store_run(store, "run-2", [0.9, 0.4], started=None)
    publish_some(store, 1, model="digits")
    path = tmp_path / "config.yaml"
    path.write_text(render(run_config(folder_storage.uri)))
    return path


@pytest.fixture
def answer(answer_of):
    return partial(answer_of, "runs")


def test_runs_are_listed_shown_and_removed(answer, config):
    listed = answer("list", config)["runs"]
    assert [each["run"] for each in listed] == ["run-2", "run-0", "run-1"]
    assert listed[1] == {
        "run": "run-0",
        "started": "2020-01-01T00:00:00+00:00",
        "dataset": "digits/00000001",
        "state": "finished",
        "accuracy": 0.5,
        "split": "validation",
        "versions": ["digits/1"],
        "size_bytes": listed[1]["size_bytes"],
    }
    assert (listed[2]["state"], listed[0]["started"]) == ("at phase 1, epoch 2", None)
    shown = answer("show", config, "run-0")
    assert [row["epochs"] for row in shown["checkpoints"]] == [1, 2, 3]
    assert shown["config"]["name"] == "digits"
    for remove, removed in (((), False), (("--remove",), True)):
        cleaned = answer("gc", config, "--keep", 1, "--at-work-days", 0, *remove)
        assert cleaned["removed"] is removed
        assert [each["run"] for each in cleaned["going"]] == ["run-2"]
        assert cleaned["left_alone"] == [{"run": "run-0", "why": "published as digits/1"}]
        assert [(each["run"], each["objects"]) for each in cleaned["checkpoints"]] == [("run-0", 6)]
        assert cleaned["size_bytes"] > listed[0]["size_bytes"]
    assert [each["run"] for each in answer("list", config)["runs"]] == ["run-0", "run-1"]


def test_without_a_configuration_the_runs_of_all_models_are_listed(answer, config, folder_storage):
    letters = {**run_config(folder_storage.uri).model_dump(mode="json"), "name": "letters"}
    store_run(open_store(folder_storage), "run-of-another", [0.9], config=letters)
    listed = answer("list", "--storage", folder_storage.uri)["runs"]
    assert [each["run"] for each in listed if each["model"] == "digits"] == ["run-2", "run-0", "run-1"]
    assert [each["run"] for each in listed if each["model"] == "letters"] == ["run-of-another"]


def test_the_commands_speak_to_people_too(transfer, config):
    for words in (("list", config), ("show", config, "run-1"), ("gc", config, "--keep", 1, "--at-work-days", 0)):
        done = transfer("runs", *words)
        assert done.returncode == 0, done.stderr
        assert "run-1" in done.stdout or "run-2" in done.stdout
    assert "50.0 %" in transfer("runs", "list", config).stdout
    done = transfer("runs", "show", config, "nobody")
    assert (done.returncode, "There is no run `nobody`" in done.stderr) == (6, True)


def test_gc_says_what_would_go_and_by_which_option_and_then_what_went(transfer, config):
    gc = ("runs", "gc", config, "--keep", 1, "--at-work-days", 0)
    would, done, nothing = (
        " ".join(transfer(*gc, *remove).stdout.split()) for remove in ((), ("--remove",), ("--remove",))
    )
    said = re.search(
        r"would remove (1 run, older checkpoints of 1 run: [0-9,]+ bytes)\. Nothing is removed yet: (.*?) for", would
    )
    assert said
    assert said[2] == "add --remove"
    assert f"removed {said[1]}" in done
    assert "removed nothing: there is nothing to remove" in nothing
