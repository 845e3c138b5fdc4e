"""Ingest on a Ray cluster whose workers die: the same shards as without one, or a clear error."""

import os
import signal
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.sourcing import config_of, write_classes
from transfer.dataset import candidates as candidates_module
from transfer.dataset import ingest as ingest_module
from transfer.dataset.ingest import ingest
from transfer.dataset.ingest_tasks import build_shard
from transfer.dataset.sources.folder import FolderSource
from transfer.errors import DatasetError
from transfer.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class DriverOnlySource(FolderSource):
    """Class folders on the driver's machine: a worker that tries to read them fails the test."""

    driver: int = field(default_factory=os.getpid)

    def read(self, key, *, max_size_bytes):
        assert os.getpid() == self.driver
        return super().read(key, max_size_bytes=max_size_bytes)


@dataclass(frozen=True)
class FailingBuilder:
    """Builds shards; a worker kills itself in the midst until that has happened `deaths` times (a file for each)."""

    folder: Path
    deaths: int

    def __call__(self, task, **options):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
        died = len(list(self.folder.iterdir()))
        if died < self.deaths:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return build_shard(task, **options)


@pytest.fixture
def source(tmp_path):
    """Images, and a file without bytes: there is nothing to carry, and still the worker must not look for it."""
    source = write_classes(tmp_path / "images", cat=60, dog=60)
    (source / "cat" / "empty.png").touch()
    return source


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """Call with a number of deaths."""

    def replace(deaths):
        (tmp_path / "deaths").mkdir()
        monkeypatch.setattr(ingest_module, "build_shard", FailingBuilder(tmp_path / "deaths", deaths))

    return replace


def options_of(source, storage):
    return config_of(source, storage, shard_size_bytes=8_000, max_reject_share=0.1)


def test_bytes_travel_to_workers_and_one_that_dies_is_replaced(source, folder_storage, tmp_path, monkeypatch, builder):
    builder(deaths=1)
    monkeypatch.setattr(ingest_module, "open_source", lambda *_: nullcontext(DriverOnlySource(str(source))))
    on_ray = ingest(options_of(source, folder_storage), open_store(folder_storage))
    monkeypatch.undo()

    monkeypatch.setattr("transfer.runtime.parallel.on_cluster", lambda: False)
    monkeypatch.setattr(candidates_module, "on_cluster", lambda: False)
    other = folder_storage.model_copy(update={"uri": str(tmp_path / "other")})
    here = ingest(options_of(source, other), open_store(other))
    assert len(list((tmp_path / "deaths").iterdir())) == 1
    assert on_ray.shards == here.shards
    assert on_ray.reject_counts == here.reject_counts == {"empty": 1}


def test_workers_that_keep_dying_are_a_clear_error_and_nothing_is_committed(
    source, folder_storage, builder, monkeypatch
):
    monkeypatch.setattr("transfer.runtime.parallel.RAY_RETRIES", 1)
    builder(deaths=1000)
    store = open_store(folder_storage)
    with pytest.raises(DatasetError, match="Ray gave a task up"):
        ingest(options_of(source, folder_storage), store)
    assert list(store.list("datasets/")) == []
