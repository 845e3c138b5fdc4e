"""Model versions without TensorFlow: any folder of files will do."""

from __future__ import annotations

import tempfile
from pathlib import Path

from transfer.registry.versions import add_version, download_version, list_versions, promote, versions_folder

MODEL = "flowers"


def publish_some(store, count, *, promoted=(), model=MODEL):
    """Publish versions with different contents, then promote some of them, by number, in this order."""
    versions = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            exported = Path(folder, str(index))
            (exported / "variables").mkdir(parents=True)
            (exported / "saved_model.pb").write_bytes(b"graph %d" % index)
            (exported / "variables/variables.index").write_bytes(b"index %d" % index)
            provenance = {
                "run": f"run-{index}",
                "dataset": f"{model}/00000001",
                "metrics": {"accuracy": 0.9, "loss": 0.25, "split": "test"},
            }
            versions.append(add_version(store, model, exported, classes=["a", "b"], provenance=provenance))
    for number in promoted:
        promote(store, versions[number - 1], reason=f"version {number} was better")
    return versions


def numbers(store, model=MODEL):
    """Numbers of the versions that there are."""
    return [version.number for version in list_versions(store, model)]


def left_of(store, number, model=MODEL):
    """Names of the objects of a version."""
    start = f"{versions_folder(model)}/{number:08d}"
    return [item.name.removeprefix(start) for item in store.list(start)]


def assert_all_intact(store, model=MODEL):
    """Every version that there is can be downloaded whole."""
    for version in list_versions(store, model):
        with tempfile.TemporaryDirectory() as folder:
            download_version(store, version, Path(folder))
