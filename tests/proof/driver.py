"""A driver in a process of its own: it ingests, publishes and promotes, and can be made to stand still or be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.published import provenance_of
from tests.sourcing import config_of, write_classes
from transfer.config import Config, StorageConfig
from transfer.dataset.file_cache import SeenLog, digest_of_check
from transfer.dataset.ingest import ingest
from transfer.dataset.ingest_tasks import Limits
from transfer.dataset.listing import Checked, CheckedColumns, list_source
from transfer.dataset.sources import open_source
from transfer.registry.promote import promote
from transfer.registry.versions import publish_once, published_version, upload_version
from transfer.storage import open_store, sha256_hex
from transfer.storage.s3 import S3Store

MODEL = DATASET = "pets"
BEFORE, RUN = "the-run-before", "the-run"
FILES = {
    "saved_model.pb": b"graph" * 1000,
    "variables/variables.index": b"index",
    "variables/variables.data": b"1" * 9999,
}
LONGEST_S = 60

# Its server has imported what drivers import, so that one starts in hundredths of a second.
PROCESSES = multiprocessing.get_context("forkserver")
# Arrow loads pandas with the first array, joblib comes with the first pool.
PROCESSES.set_forkserver_preload(["tests.proof.driver", "joblib", "pandas"])


@dataclass(frozen=True)
class Job:
    """What the driver is told to do. Repeated, it finishes what was begun."""

    config: Config
    exported: Path
    run: str = RUN

    def on(self, storage: StorageConfig) -> Job:
        """The same job on another storage."""
        return Job(self.config.model_copy(update={"storage": storage}), self.exported, self.run)

    def do(self) -> None:
        store = open_store(self.config.storage)
        dataset = ingest(self.config, store)
        version = published_version(store, MODEL, self.run)
        if version is None:
            uploaded = upload_version(
                store, MODEL, self.exported, classes=dataset.classes, provenance=provenance_of(self.run)
            )
            version = publish_once(store, uploaded, run=self.run)
        promote(store, version, reason="better")


def job_with_a_past(folder: Path) -> Job:
    """A job on storage in `folder` that has version 1 of the dataset and a promoted version 1 of the model.

    It will find four more images, which count as checked already: so no driver here needs TensorFlow.
    """
    source = write_classes(folder / "images", cat=4, dog=4)
    for name, data in FILES.items():
        path = folder / "exported" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    config = config_of(source, StorageConfig(uri=str(folder / "storage")), shard_size_bytes=2_000)
    job = Job(config, folder / "exported")
    remember_as_checked(config)
    Job(config, job.exported, BEFORE).do()
    write_classes(source, first_seed=100, cat=2, dog=2)
    remember_as_checked(config)
    return job


def remember_as_checked(config: Config) -> None:
    """Note in storage what an ingest would find in the images of the source, all of them good."""
    store, checked = open_store(config.storage), CheckedColumns()
    with open_source(config.dataset, config.storage) as source:
        listing = list_source(source, renames={})
        for row in range(len(listing)):
            data = source.read(listing.key(row), max_size_bytes=1024**2)
            checked.add(row, Checked(bytes.fromhex(sha256_hex(data)), 16, 16, len(data)))
        check = digest_of_check(Limits.of(config.dataset)._asdict())
        SeenLog(store, config.dataset_name, source=str(source.description["uri"]), check=check).add(listing, checked)


def copied(job: Job, storage: StorageConfig) -> Job:
    """The job on a copy of its storage."""
    source = Path(job.config.storage.uri)
    if storage.uri.startswith("s3:"):
        store = open_store(storage)
        for path in source.rglob("*"):
            if path.is_file():
                store.put(path.relative_to(source).as_posix(), path)
    else:
        shutil.copytree(source, storage.uri)
    return job.on(storage)


class Driver:
    """A process that does a job. `stop_at`: at which boundary it stands still; None: at none, and it names them all."""

    def __init__(self, job: Job, *, stop_at: int | None = None) -> None:
        self._ours, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_drive, args=(job, dict(os.environ), stop_at, theirs))
        self.process.start()
        theirs.close()
        assert self.said() == "ready"

    def said(self) -> str | None:
        """What it says next; None when it has ended."""
        assert self._ours.poll(LONGEST_S), "the driver says nothing"
        try:
            return self._ours.recv()
        except EOFError:
            return None

    def kill(self, number: int) -> None:
        """Send it a signal, and wait for its end."""
        with contextlib.suppress(ProcessLookupError):  # It was faster.
            os.kill(self.process.pid, number)
        self.process.join(LONGEST_S)

    def finish(self) -> list[str]:
        """Wait until it has done all, and return the boundaries that it passed."""
        passed = []
        while (said := self.said()) is not None:
            passed.append(said)
        self.process.join(LONGEST_S)
        assert self.process.exitcode == 0
        return passed


def _drive(job, environment, stop_at, told):
    os.environ.update(environment)
    passed = 0

    def reach(moment, name):
        nonlocal passed
        told.send(f"{moment} {name}")
        if passed == stop_at:
            time.sleep(600)
        passed += 1

    def stopping(act, name_of):
        def acted(*arguments, **options):
            name = name_of(arguments)
            reach("before", name)
            answer = act(*arguments, **options)
            reach("after", name)
            return answer

        return acted

    # Where an object gets its name: a hard link in a folder, a request to a bucket.
    root = Path(job.config.storage.uri)
    os.link = stopping(os.link, lambda arguments: arguments[1].relative_to(root).as_posix())
    S3Store._send_once = stopping(S3Store._send_once, lambda arguments: arguments[1])
    told.send("ready")
    job.do()
