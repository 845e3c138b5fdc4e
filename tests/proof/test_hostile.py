"""Input that was made to do harm is refused before it does, with a sentence, in bounded memory.

More of it below tests/unit: archives in dataset/test_sources_archive.py, images in dataset/test_check.py, file names in
dataset/test_sources.py, networks in backbone/.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.proof.amount import trials
from tests.proof.figures import note
from tests.published import MODEL, publish_some
from tests.sourcing import config_of, read_ledger, write_classes
from transfer.backbone import keras_file
from transfer.backbone.load import load_backbone
from transfer.catalog.model import ModelVersion
from transfer.config import BaseNetworkConfig
from transfer.dataset.ingest import ingest
from transfer.errors import BackboneError, CorruptObjectError, DatasetError, StorageError
from transfer.registry.published_model import load_answers
from transfer.registry.versions import download_version, load_version, versions_log
from transfer.storage import open_store

ROOT = Path(__file__).parents[2]
# What is refused: as an error, or as one image among others.
REFUSED = {
    "zeros_in_a_zip": ("DatasetError", "unpacks to more than"),
    "zeros_in_a_tar": ("DatasetError", "unpacks to more than"),
    "zeros_in_an_xz": ("DatasetError", "unpacks to more than"),
    "pixels": ("RejectedImage", "3600000000 pixels"),
    "text in a png": ("RejectedImage", "too large"),
    "aliases": ("ConfigError", "aliases"),
    "nested lists": ("ConfigError", "recursion"),
    "nested keys": ("ConfigError", "recursion"),
    "dashes": ("ConfigError", "recursion"),
    "many keys": ("ConfigError", "unknown key"),
    "digits": ("ConfigError", "digits"),
    "sixties": ("ConfigError", "63 bits"),
    "tiny files": ("DatasetError", "images were refused (100.0 %)"),
    "tiny members": ("DatasetError", "images were refused (100.0 %)"),
}
LARGEST_GROWTH_MIB = 64


def test_bombs_are_refused_in_bounded_memory(tmp_path):
    files = trials(5_000, 100_000)
    command = [sys.executable, "-m", "tests.proof.bombs", str(tmp_path), str(files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    assert {name: kind for name, (kind, _, _) in found.items()} == {name: kind for name, (kind, _) in REFUSED.items()}
    for name, (_, message, growth_mib) in found.items():
        assert REFUSED[name][1] in message
        # A file's key, its refusal and its line of the ledger take room; its neighbours' bytes do not.
        allowed_mib = LARGEST_GROWTH_MIB + (files * 4 / 1024 if name.startswith("tiny") else 0)
        assert growth_mib < allowed_mib, name
    growths = {name.replace(" ", "_") + "_mib": round(growth) for name, (_, _, growth) in found.items()}
    note("bombs", trials=len(found), failures=0, files=files, **growths)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_file_names_reach_neither_a_terminal_nor_a_page_as_they_are(tmp_path, folder_storage):
    source = write_classes(tmp_path / "images", cat=1, dog=1)
    names = [b"two\nlines.png", b"latin\xe9.png", b"\x1b[2Jclear.png", "\u202egnp.exe".encode(), b"%0A.png", b"x" * 250]
    for name in names:
        Path(os.fsdecode(os.fsencode(source) + b"/cat/" + name)).write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        ingest(config_of(source, folder_storage), open_store(folder_storage))
    assert caught.value.message.isprintable()
    ledger = re.search(r"rejects/\w+\.parquet", caught.value.message)[0]
    keys = read_ledger(open_store(folder_storage), ledger)["key"].to_pylist()
    assert len(keys) == len(names)
    assert all(key.isprintable() for key in keys)


def exchanged(store, version, name, content):
    """Put another content in a published file's place, as somebody who may write to the disk could."""
    path = Path(store.uri, version.folder, name)
    path.chmod(0o600)
    path.write_bytes(content)


def test_a_saved_model_that_is_not_the_registered_one_is_never_loaded(folder_storage, tmp_path):
    store = open_store(folder_storage)
    (version,) = publish_some(store, 1)
    exchanged(store, version, "saved_model.pb", b"graph 1")  # as long as the one that was published
    with pytest.raises(CorruptObjectError, match=r"saved_model\.pb"):
        load_answers(store, version, tmp_path / "model")
    assert not (tmp_path / "model/saved_model.pb").exists()


def test_a_file_that_is_not_registered_does_not_come_along(folder_storage, tmp_path):
    store = open_store(folder_storage)
    (version,) = publish_some(store, 1)
    store.put(f"{version.folder}/assets.extra/evil", b"evil")
    folder = download_version(store, version, tmp_path / "model")
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        file.name.split("/")[-1] for file in version.files
    }


@pytest.mark.parametrize("name", ["../../evil/file", "{tmp_path}/evil/file", "a/../../../evil/file"])
def test_a_version_whose_files_lead_elsewhere_is_refused_before_anything_is_written(folder_storage, tmp_path, name):
    store = open_store(folder_storage)
    (version,) = publish_some(store, 1)
    document = version.model_dump(mode="json") | {"number": 2}
    document["files"][0]["name"] = name.format(tmp_path=tmp_path)
    versions_log(store, MODEL).append(document, number=2)
    with pytest.raises(StorageError, match="is not an object's name"):
        download_version(store, load_version(store, MODEL, 2), tmp_path / "deep/er/model")
    assert not list(tmp_path.rglob("evil"))


def test_a_version_of_other_fields_is_refused_with_a_sentence(folder_storage):
    store = open_store(folder_storage)
    (version,) = publish_some(store, 1)
    document = version.model_dump(mode="json")
    for number, change in enumerate([{"number": -1}, {"files": None}, {"classes": [1]}], 2):
        versions_log(store, MODEL).append({**document, **change}, number=number)
        with pytest.raises(
            CorruptObjectError, match=f"does not read as a {ModelVersion.__name__}.*{next(iter(change))}"
        ):
            load_version(store, MODEL, number)


def keras_file_with(tmp_path, change):
    """A `.keras` file whose description of a layer is changed."""
    import keras

    keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 3, activation="relu")]).save(
        tmp_path / "good.keras"
    )
    with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(tmp_path / "evil.keras", "w") as evil:
        for member in good.infolist():
            content = good.read(member)
            if member.filename == "config.json":
                description = json.loads(content)
                change(next(layer for layer in description["config"]["layers"] if layer["class_name"] == "Conv2D"))
                content = json.dumps(description).encode()
            evil.writestr(member.filename, content)
    return BaseNetworkConfig(model=str(tmp_path / "evil.keras"), image_size=16)


def call_of(module, function, *arguments):
    """How a `.keras` file names a function to be looked up, and a layer made of a call."""
    return {
        "module": module,
        "class_name": "function",
        "config": function,
        "registered_name": "function",
        "args": arguments,
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("builtins", "exec"),
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "getoutput"),
        ("keras.config", "enable_unsafe_deserialization"),
        ("keras.src.utils.file_utils", "get_file"),
    ],
)
def test_a_keras_file_that_names_a_function_elsewhere_is_refused(tmp_path, module, function):
    import keras

    def as_activation(layer):
        layer["config"]["activation"] = call_of(module, function)

    def as_layer(layer):
        layer.update(
            module=module, class_name=function, registered_name=None, config={"command": f"touch {tmp_path}/ran"}
        )

    assert load_backbone(keras_file_with(tmp_path, lambda _: None)).name == "evil"
    for change in (as_activation, as_layer):
        with pytest.raises(BackboneError):
            load_backbone(keras_file_with(tmp_path, change))
    assert not (tmp_path / "ran").exists()
    assert keras.src.saving.serialization_lib.in_safe_mode() in {None, True}


def test_a_keras_file_that_unpacks_to_more_than_any_network_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_file, "MAX_DESCRIPTION_BYTES", 1000)
    config = keras_file_with(tmp_path, lambda layer: layer.update(name="x" * 2000))
    with pytest.raises(BackboneError, match=r"config\.json.*more than 1,000 bytes"):
        load_backbone(config)
