"""Somebody who reads storage all the time, and notices whatever is torn or lost."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from tests.proof.driver import BEFORE, DATASET, FILES, MODEL, RUN
from transfer.catalog import layout
from transfer.config import StorageConfig
from transfer.dataset.manifest import load_dataset
from transfer.dataset.shards import read_shard
from transfer.registry.versions import list_promotions, list_versions, load_version
from transfer.storage import open_store

# Between two looks at everything: longer, and less would be seen; shorter, and whoever is watched would starve.
PAUSE_S = 0.01


class Reader:
    """Reads all that is committed, again and again, until the `with` block ends, and once more then."""

    def __init__(self, storage: StorageConfig) -> None:
        self._store = open_store(storage)
        self._versions: set[int] = set()
        self._dataset = self._promotion = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read_until_ended)
        self.reads = 0
        self.faults: list[Exception] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._read_once()
        if error is None and self.faults:
            raise self.faults[0]

    def _read_until_ended(self) -> None:
        while not self._ended.wait(PAUSE_S):
            self._read_once()

    def _read_once(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is a fault.
            self.faults.append(error)
        self.reads += 1

    def _read(self) -> None:
        store = self._store
        promotion = max(number for number, _ in list_promotions(store, MODEL))
        serving = load_version(store, MODEL).number
        versions = {version.number: version for version in list_versions(store, MODEL)}
        assert self._versions | {serving} <= set(versions), "a version was lost"
        assert promotion >= self._promotion, "a promotion was lost"
        for version in versions.values():
            for file in version.files:
                assert store.read_verified(f"{version.folder}/{file.name}", file.sha256) == FILES[file.name]
        dataset = load_dataset(store, DATASET)
        assert dataset.number >= self._dataset, "a dataset version was lost"
        assert sum(read_shard(store, shard).num_rows for shard in dataset.shards) in {8, 12}
        self._read_as_tensorflow_serving_does()
        self._versions, self._promotion, self._dataset = set(versions), promotion, dataset.number

    def _read_as_tensorflow_serving_does(self) -> None:
        """A folder with a graph is a whole SavedModel, with or without the JSON."""
        there = {item.name for item in self._store.list(f"{layout.versions_log(MODEL)}/")}
        for name in there:
            if name.endswith("/saved_model.pb"):
                assert {f"{name.removesuffix('saved_model.pb')}{file}" for file in FILES} <= there


def assert_finished(storage: StorageConfig) -> None:
    """The job's work is done, once."""
    store = open_store(storage)
    dataset = load_dataset(store, DATASET)
    assert (dataset.number, sum(map(dataset.rows, dataset.counts))) == (2, 12)
    assert [version.provenance.run for version in list_versions(store, MODEL)] == [BEFORE, RUN]
    assert load_version(store, MODEL).provenance.run == RUN
    assert len(list(list_promotions(store, MODEL))) == 2
