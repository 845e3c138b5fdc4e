"""The commands `transfer registry …`, called in this process."""

from functools import partial

import pytest

from tests.published import write_config_of_five
from transfer.pages.contents import read_contents
from transfer.pages.write import render_index
from transfer.registry.describe import record_refusal
from transfer.registry.versions import load_version
from transfer.storage import open_store

MODEL = "digits"


@pytest.fixture
def config(tmp_path, folder_storage):
    return write_config_of_five(tmp_path, folder_storage)


@pytest.fixture
def registry(transfer):
    return lambda *arguments: transfer("registry", *arguments)


@pytest.fixture
def answer(answer_of):
    return partial(answer_of, "registry")


def test_versions_are_listed_rolled_back_pinned_and_removed(answer, config):
    listed = answer("list", config)
    assert (listed["model"], listed["promoted"]) == (MODEL, 5)
    in_storage = answer("list", "--storage", config.parent / "storage")["versions"]
    assert in_storage == [{"model": MODEL, **version} for version in listed["versions"]]
    assert listed["versions"][0] == {
        "version": 1,
        "published_at": listed["versions"][0]["published_at"],
        "run": "run-0",
        "dataset": "digits/00000001",
        "size_bytes": len("graph 0index 0"),
        "metrics": {"accuracy": 0.9, "loss": 0.25, "split": "test"},
        "untrained_classes": [],
        "promoted": False,
        "pinned": None,
        "refused": None,
    }
    assert answer("pin", config, 1, "--reason", "the paper's")["pinned"] is True
    fetched = answer("fetch", config, 3, "--to", config.parent / "served")
    assert fetched["folder"] == str(config.parent / "served/version-3")
    assert (config.parent / "served/version-3/saved_model.pb").read_bytes() == b"graph 2"
    back = answer("rollback", config, "--reason", "5 is slow")
    assert (back["version"], back["replaces"], back["changed"]) == (4, 5, True)
    for remove, removed in (((), False), (("--remove",), True)):
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
    assert "3 versions (42 bytes), 3 copies for servers. Nothing is removed yet: add --remove for that." in done.stdout
    assert "served before the present one" in done.stdout
    listed = registry("list", config).stdout
    assert "run-4" in listed
    assert "90.0 %" in listed


def test_what_a_gate_refused_is_listed_and_shown_with_its_rules(registry, answer, config, folder_storage):
    store = open_store(folder_storage)
    passed = {"name": "min_images", "passed": True, "text": "Both answered 60 images."}
    failed = {"name": "better", "passed": False, "text": "Both models have the same images right."}
    evidence = {"night": 14, "promote": False, "rules": [passed, failed]}
    record_refusal(store, load_version(store, MODEL, 2), champion=1, evidence=evidence)
    assert [row["refused"] is None for row in answer("list", config)["versions"]] == [True, False, True, True, True]
    assert answer("show", config, 2)["refusals"][0]["evidence"] == evidence
    assert "better" in registry("list", config).stdout
    shown = registry("show", config, 2).stdout
    assert "Refused: Both models have the same images right." in shown
    assert "night 14" in shown
    index = render_index(read_contents(store))
    assert index.count("Refused: Both models have the same images right.") == 1


def test_a_model_without_versions_is_an_error_that_names_those_with_some(registry, config):
    done = registry("list", config, "--set", "name=digit")
    assert done.returncode == 7
    assert "Model `digit` has no versions in" in done.stderr
    assert "Models with versions: `digits`." in done.stderr


def test_a_mistake_ends_with_the_code_of_the_registry_and_changes_nothing(registry, answer, config):
    done = registry("rollback", config, "--to", 9, "--reason", "typo")
    assert done.returncode == 7
    assert "has no version 9" in done.stderr
    assert "Its versions: 1, 2, 3, 4, 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert answer("show", config)["version"] == 5
