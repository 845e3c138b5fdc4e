"""Ingest over several processes: the same result, a killed worker, and memory that does not grow with the dataset."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sourcing import config_of, write_classes
from transfer.dataset import candidates as candidates_module
from transfer.dataset import ingest as ingest_module
from transfer.dataset.ingest import ingest
from transfer.dataset.ingest_tasks import build_shard
from transfer.dataset.splits import SPLITS
from transfer.errors import DatasetError
from transfer.storage import open_store


@dataclass(frozen=True)
class DieOnTrain:
    """Builds shards until one of the train split comes, and kills its process then."""

    parent: int

    def __call__(self, task, **options):
        if task.split == "train" and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return build_shard(task, **options)


def test_a_killed_worker_commits_nothing_and_the_next_run_finishes(tmp_path, folder_storage, monkeypatch):
    source = write_classes(tmp_path / "images", cat=60, dog=60)
    config = config_of(source, folder_storage, shard_size_bytes=8_000)
    store = open_store(folder_storage)
    # One process checks, two write, in both runs.
    processes = iter([1, 2, 1, 2])
    for module in (candidates_module, ingest_module):
        monkeypatch.setattr(module, "process_count", lambda *_, **__: next(processes))
    with monkeypatch.context() as killing:
        killing.setattr(ingest_module, "build_shard", DieOnTrain(os.getpid()))
        with pytest.raises(DatasetError, match="worker process ended abruptly"):
            ingest(config, store)
    assert list(store.list("datasets/")) == []
    over_two = ingest(config, store)
    assert sum(over_two.rows(split) for split in SPLITS) == 120
    # In one process, into another store: the same shards to the byte.
    monkeypatch.undo()
    other = folder_storage.model_copy(update={"uri": str(tmp_path / "other")})
    assert ingest(config_of(source, other, shard_size_bytes=8_000), open_store(other)).shards == over_two.shards


MEASURE = """
import json, re, resource, sys
from pathlib import Path
from transfer.config import Config
from transfer.runtime import parallel
from transfer.dataset.ingest import ingest
from transfer.storage import open_store

if __name__ == "__main__":
    config = Config.model_validate_json(sys.argv[1])
    parallel.IMAGES_PER_PROCESS = 100
    dataset = ingest(config, open_store(config.storage))
    # Kilobytes; that of the children is the largest of them.
    driver = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([dataset.rows("train") + dataset.rows("validation"), driver / 1024, workers / 1024]))
"""


def write_noise(folder, count):
    """JPEG files of about 18 KB each, all different, in two classes."""
    noise = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (96, 96, 3), np.uint8)).save(path, quality=90)
    return folder


def peak_memory(source, storage, tmp_path):
    """Images ingested, and peak resident memory in MiB of the driver and of the largest worker."""
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    config = config_of(source, storage, shard_size_bytes=1024**2).model_dump_json()
    done = subprocess.run([sys.executable, script, config], capture_output=True, check=True, timeout=300)
    return json.loads(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux keeps it")
@pytest.mark.proof
def test_memory_stays_flat_as_the_dataset_grows(tmp_path, folder_storage):
    other = folder_storage.model_copy(update={"uri": str(tmp_path / "other")})
    few, *before = peak_memory(write_noise(tmp_path / "small", 200), folder_storage, tmp_path)
    many, *after = peak_memory(write_noise(tmp_path / "large", 2_000), other, tmp_path)
    print(f"{few} images: {before} MiB; {many}: {after} MiB (driver, worker)")  # noqa: T201 - shown with -s
    assert (few, many) == (200, 2_000)
    # There are 32 MiB more of images. Keeping them, in the driver or in a worker, would show.
    assert np.subtract(after, before).max() < 12
