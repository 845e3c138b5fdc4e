"""The commands `transfer datasets …`, called in this process."""

from datetime import timedelta
from functools import partial

import pytest

from tests.sourcing import config_of, write_classes
from transfer.config.reference import render
from transfer.dataset import removals
from transfer.dataset.ingest import ingest
from transfer.storage import open_store


@pytest.fixture
def pets(tmp_path, folder_storage):
    return config_of(write_classes(tmp_path / "images", ant=10, cat=10, dog=10), folder_storage, shard_size_bytes=1)


@pytest.fixture
def config(tmp_path, pets):
    ingest(pets, open_store(pets.storage))
    path = tmp_path / "config.yaml"
    path.write_text(render(pets))
    return path


@pytest.fixture
def answer(answer_of):
    return partial(answer_of, "datasets")


def test_versions_are_listed_and_what_the_next_one_is_to_be_is_said(answer, config, pets):
    told = answer("drop-class", config, "dog", "--reason", "they bark")
    assert (told["dropped"][0]["name"], told["takes_effect_with_the_next_ingest"]) == ("dog", True)
    ingest(pets, open_store(pets.storage))
    listed = answer("list", config)
    assert listed["takes_effect_with_the_next_ingest"] is False
    first, second = listed["versions"]
    assert (first["classes"], second["classes"]) == (["ant", "cat", "dog"], ["ant", "cat"])
    assert sum(split["ant"] for split in second["images"].values()) == 10
    assert (first["indices_from"], second["indices_from"]) == (1, 2)
    # Only the first version has the dogs; the others' shards are in both.
    assert first["own_bytes"] == first["size_bytes"] - second["size_bytes"] > 0
    assert second["own_bytes"] == 0
    in_storage = answer("list", "--storage", pets.storage.uri)["versions"]
    assert in_storage == [{"dataset": "pets", **version} for version in listed["versions"]]
    answer("restore-class", config, "dog", "--reason", "no, they are dear")
    told = answer("start-over", config, "--reason", "a new camera")
    assert (told["dropped"], told["starts_over_after"]) == ([], 2)
    assert told["takes_effect_with_the_next_ingest"] is True


def test_they_speak_to_people_too(transfer, config):
    done = transfer("datasets", "list", config)
    assert done.returncode == 0, done.stderr
    assert "class of version 1" in done.stdout
    done = transfer("datasets", "drop-class", config, "bee", "--reason", "so")
    assert (done.returncode, "Its classes are `ant`, `cat`, `dog`." in done.stderr) == (4, True)


def test_an_image_is_forgotten_only_if_that_is_asked_for(transfer, answer_of, answer, config, monkeypatch):
    name = "cat/00010.png"
    found = answer_of("forget", config, name, "--reason", "asked to")
    assert (found["forgotten"], found["version"]) == (False, None)
    assert found["held_by"] == [{"version": "pets/00000001", "images": {"train": 1}}]
    done = transfer("forget", config, name, "--reason", "asked to")
    assert done.returncode == 0, done.stderr
    assert "add --remove for that" in done.stdout
    found = answer_of("forget", config, name, "--reason", "asked to", "--remove")
    assert (found["forgotten"], found["version"]) == (True, "pets/00000002")
    done = transfer("forget", config, "cat/nowhere.png", "--reason", "so")
    assert (done.returncode, "no version" in done.stderr.lower()) == (4, True)
    # Old versions have it until they are removed, which has to be asked for, too.
    assert answer("gc", config, "--at-work-days", "0")["versions"] == ["pets/00000001"]
    assert "add --remove for that" in transfer("datasets", "gc", config, "--at-work-days", "0").stdout
    with monkeypatch.context() as patch:
        patch.setattr(removals, "_BEGINNING", timedelta(0))
        assert "repeat the command" in transfer("datasets", "gc", config, "--at-work-days", "0", "--remove").stdout
    cleaned = answer("gc", config, "--at-work-days", "0", "--remove")
    assert (cleaned["removed"], cleaned["left"]) == (True, 0)
    assert [version["version"] for version in answer("list", config)["versions"]] == [2]
