"""The commands `transfer registry …`, called in this process."""

import json

import pytest

from tests.digits import digits_config
from tests.published import publish_some
from transfer.config.reference import render
from transfer.storage import open_store

MODEL = "digits"


@pytest.fixture
def config(tmp_path, folder_storage):
    publish_some(open_store(folder_storage), 5, promoted=[1, 2, 3, 4, 5], model=MODEL)
    path = tmp_path / "config.yaml"
    path.write_text(render(digits_config(tmp_path / "images", folder_storage.uri)))
    return path


@pytest.fixture
def registry(transfer):
    return lambda *arguments: transfer("registry", *arguments)


@pytest.fixture
def answer(registry):
    """Calls a command that answers in JSON."""

    def of(*arguments):
        done = registry(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return of


def test_versions_are_listed_rolled_back_pinned_and_removed(answer, config):
    listed = answer("list", config)
    assert (listed["model"], listed["promoted"]) == (MODEL, 5)
    assert listed["versions"][0] == {
        "version": 1,
        "published_at": listed["versions"][0]["published_at"],
        "run": "run-0",
        "dataset": "digits/00000001",
        "size_bytes": len("graph 0index 0"),
        "metrics": {"accuracy": 0.9, "loss": 0.25, "split": "test"},
        "promoted": False,
        "pinned": None,
    }
    assert answer("pin", config, 1, "--reason", "the paper's")["pinned"] is True
    fetched = answer("fetch", config, 3, "--to", config.parent / "served")
    assert fetched["folder"] == str(config.parent / "served/3")
    assert (config.parent / "served/3/saved_model.pb").read_bytes() == b"graph 2"
    back = answer("rollback", config, "--reason", "5 is slow")
    assert (back["version"], back["replaces"], back["changed"]) == (4, 5, True)
    for remove, removed in (((), False), (("--yes",), True)):
        cleaned = answer("gc", config, "--keep", 1, *remove)
        assert cleaned["removed"] is removed
        assert [row["version"] for row in cleaned["going"]] == [2, 3]
        assert cleaned["left_alone"] == [
            {"version": 1, "why": "pinned: the paper's"},
            {"version": 4, "why": "promoted"},
        ]
    assert [(row["version"], row["promoted"]) for row in answer("list", config)["versions"]] == [
        (1, False),
        (4, True),
        (5, False),
    ]
    assert answer("unpin", config, 1)["changed"] is True
    shown = answer("show", config)
    assert [file["name"] for file in shown["files"]] == ["variables/variables.index", "saved_model.pb"]
    assert [(row["promotion"], row["version"], row["reason"]) for row in shown["promotions"]] == [
        (4, 4, "version 4 was better"),
        (5, 5, "version 5 was better"),
        (6, 4, "5 is slow"),
    ]
    assert shown["provenance"]["run"] == "run-3"


def test_people_see_what_would_go_and_what_stays_why(registry, config):
    done = registry("gc", config, "--keep", 1)
    assert done.returncode == 0, done.stderr
    assert "would go" in done.stdout
    assert "served before the present one" in done.stdout
    listed = registry("list", config).stdout
    assert "run-4" in listed
    assert "0.9000" in listed


def test_a_mistake_ends_with_the_code_of_the_registry_and_changes_nothing(registry, answer, config):
    done = registry("rollback", config, "--to", 9, "--reason", "typo")
    assert done.returncode == 7
    assert "has no version 9" in done.stderr
    assert "Its versions are [1, 2, 3, 4, 5]" in done.stderr
    assert "Traceback" not in done.stderr
    assert answer("show", config)["version"] == 5
