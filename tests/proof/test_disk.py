"""The disk is full, or may not be written to: storage stays whole, and the error says what was met where."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.proof.amount import trials
from tests.proof.driver import LONGEST_S, PROCESSES, copied, job_with_a_past
from tests.proof.figures import note
from tests.proof.readers import Reader, assert_finished
from tests.proof.small_disk import fill, mounted
from transfer.config import StorageConfig
from transfer.errors import StorageError
from transfer.storage import open_store, sha256_hex

NOBODY = 65534


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    return job_with_a_past(tmp_path_factory.mktemp("past"))


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "small") as folder:
        yield folder


def error_of(work):
    """The error of storage that it ends with, if it does."""
    try:
        work()
    except StorageError as error:
        return error
    return None


def test_a_full_disk_tears_nothing_and_with_room_again_the_job_finishes(past, small_disk):
    amount, full = random.Random(1), 0
    for trial in range(trials(8, 100)):
        job = copied(past, StorageConfig(uri=str(small_disk / str(trial))))
        ballast = fill(small_disk, leave_bytes=amount.randrange(0, 25) * 4096)
        with Reader(job.config.storage):
            error = error_of(job.do)
        if error is not None:
            full += 1
            assert "No space left on device" in error.message
            assert "free space" in error.advice
        assert not list(small_disk.rglob(".transfer-tmp-*"))
        ballast.unlink()
        job.do()
        assert_finished(job.config.storage)
        shutil.rmtree(job.config.storage.uri)
    assert full
    note("disk full in the output", trials=trials(8, 100), of_them_full=full, failures=0)


def test_a_full_disk_under_the_local_tier_costs_the_copies_and_nothing_else(s3_storage, small_disk, caplog):
    store = open_store(s3_storage.model_copy(update={"cache_folder": str(small_disk)}))
    data = os.urandom(300_000)
    store.put("object", data)
    ballast = fill(small_disk, leave_bytes=100_000)
    for _ in range(3):
        assert store.open_verified("object", sha256_hex(data)).read() == data
    assert [record.message for record in caplog.records if "No space left on device" in record.message] != []
    assert list((small_disk / "objects").iterdir()) == []
    ballast.unlink()
    assert store.open_verified("object", sha256_hex(data)).read() == data
    assert [path.name for path in (small_disk / "objects").iterdir()] == [sha256_hex(data)]


def test_a_file_that_may_not_grow_ends_a_command_with_a_sentence(past, tmp_path):
    job = copied(past, StorageConfig(uri=str(tmp_path / "storage")))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(job.config.model_dump(mode="json", exclude_defaults=True)))

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, 2_500))

    with Reader(job.config.storage):
        ended = subprocess.run(
            [sys.executable, "-m", "transfer", "ingest", str(path)],
            preexec_fn=limit,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "Error: " in ended.stderr
    assert "File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    job.do()
    assert_finished(job.config.storage)


def as_nobody(work, folder, told):
    """Do it without the rights of root, which nothing is denied to."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        told.send(work(open_store(StorageConfig(uri=str(folder)))))
    except Exception as error:  # noqa: BLE001 - whatever it is goes to the test.
        told.send(error)


def write(store):
    store.put("folder/object", b"1")


def read(store):
    return store.read("object")


def see(store):
    return [item.name for item in store.list()]


@pytest.mark.parametrize(("work", "word"), [(write, "write folder/object"), (read, "read object")])
def test_what_is_denied_is_said_with_the_object_and_the_reason(work, word):
    # Not below pytest's own folder, into which only its owner may look.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "object").write_bytes(b"1")
        Path(folder, "object").chmod(0o000)
        Path(folder).chmod(0o555)
        ours, theirs = PROCESSES.Pipe()
        process = PROCESSES.Process(target=as_nobody, args=(work, folder, theirs))
        process.start()
        assert ours.poll(LONGEST_S)
        error = ours.recv()
        process.join()
        Path(folder).chmod(0o755)
    assert type(error) is StorageError
    assert f"Could not {word} in {folder}: Permission denied." in error.message
    assert "permissions" in error.advice
