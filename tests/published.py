"""Versions of models and datasets without TensorFlow or images (any folder of files will do); a server that polls."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Self

from tests.digits import digits_config
from transfer.catalog import layout
from transfer.catalog.model import BaseDigest, Pretrained, Provenance, ReportedMetrics, TrainedWeights
from transfer.config.reference import render
from transfer.dataset.manifest import Dataset
from transfer.registry.promote import promote
from transfer.registry.versions import commit_version, download_version, list_versions, upload_version
from transfer.storage import open_store

MODEL = "flowers"


def provenance_of(run="run", dataset="flowers/00000001", *, accuracy=0.9, loss=0.25, config=None):
    """Where a version may come from."""
    return Provenance(
        run=run,
        dataset=dataset,
        base=BaseDigest(model="MobileNetV2", sha256="b" * 64),
        weights=TrainedWeights(checkpoint=1, sha256="c" * 64),
        report=1,
        metrics=ReportedMetrics(loss=loss, accuracy=accuracy, split="test"),
        config=config or {},
    )


def pretrained(*, config=None):
    """Where a version comes from that is a pretrained classifier as it is."""
    base = BaseDigest(model="MobileNetV2", sha256="b" * 64, weights_from="imagenet")
    return Pretrained(base=base, classes_from="ImageNet", config=config or {})


def add_version(store, model, exported, *, classes, provenance):
    """Upload a SavedModel from a local folder as the model's next version, and make it exist."""
    return commit_version(store, upload_version(store, model, exported, classes=classes, provenance=provenance))


def publish_some(store, count, *, promoted=(), model=MODEL):
    """Publish versions with different contents, then promote some of them, by number, in this order."""
    versions = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(count):
            exported = Path(folder, str(index))
            (exported / "variables").mkdir(parents=True)
            (exported / "saved_model.pb").write_bytes(b"graph %d" % index)
            (exported / "variables/variables.index").write_bytes(b"index %d" % index)
            provenance = provenance_of(f"run-{index}", f"{model}/00000001")
            versions.append(add_version(store, model, exported, classes=["a", "b"], provenance=provenance))
    for number in promoted:
        promote(store, versions[number - 1], reason=f"version {number} was better")
    return versions


def numbers(store, model=MODEL):
    """Numbers of the versions that there are."""
    return [version.number for version in list_versions(store, model)]


def left_of(store, number, model=MODEL):
    """Names of the objects of a version."""
    start = f"{layout.versions_log(model)}/{number:08d}"
    return [item.name.removeprefix(start) for item in store.list(start)]


def assert_all_intact(store, model=MODEL):
    """Every version that there is can be downloaded whole."""
    for version in list_versions(store, model):
        with tempfile.TemporaryDirectory() as folder:
            download_version(store, version, Path(folder))


def write_config_of_five(folder, storage):
    """Publish and promote five versions of the digits' model; returns the path of its configuration."""
    publish_some(open_store(storage), 5, promoted=[1, 2, 3, 4, 5], model="digits")
    path = folder / "config.yaml"
    path.write_text(render(digits_config(folder / "images", storage.uri)))
    return path


def first_version(name, classes, **changes):
    """Version 1 of a dataset without images, unless `changes` say otherwise."""
    nothing = {"parent": None, "shards": [], "counts": {}, "rejects": None, "reject_counts": {}, "source": {}}
    return Dataset(**{"name": name, "number": 1, "classes": classes, **nothing, **changes})


class PollingServer:
    """Looks into a folder over and over, until the block ends.

    `served`: by number, in the order in which they were met, every content that was met: {name: bytes}.
    """

    def __init__(self, folder: Path) -> None:
        self.served: dict[int, list[dict[str, bytes]]] = {}
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def _poll(self) -> None:
        while not self._ended.wait(0.001):
            self.look()

    def look(self) -> None:
        """Take the highest number, whatever is in that folder."""
        numbers = [int(path.name) for path in self._folder.glob("*") if path.name.isdecimal()]
        if numbers:
            highest = self._folder / f"{max(numbers):08d}"
            files = {
                path.relative_to(highest).as_posix(): path.read_bytes() for path in highest.rglob("*") if path.is_file()
            }
            contents = self.served.setdefault(max(numbers), [])
            if files not in contents:
                contents.append(files)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()
