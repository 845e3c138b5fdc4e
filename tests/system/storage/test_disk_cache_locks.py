"""Who writes, waits and evicts in the folder of a local disk cache."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from transfer.errors import StorageError
from transfer.storage import sha256_hex
from transfer.storage.disk_cache import DiskCache

MIB = 1024**2


def kept_in(folder):
    return sorted(path.name for path in folder.iterdir())


def is_waited_for(path):
    """Whether somebody waits for the file's lock."""
    number = f":{path.stat().st_ino} "
    return any("->" in line and number in line for line in Path("/proc/locks").read_text().splitlines())


def test_who_evicts_at_the_same_time_trips_over_nobody(tmp_path):
    contents = [f"{number}".encode() * 100 for number in range(30)]
    start = threading.Barrier(8)

    def work(first):
        disk_cache = DiskCache(tmp_path, max_size_bytes=1000)
        start.wait()
        for content in (contents[first:] + contents[:first]) * 5:
            file = disk_cache.open(sha256_hex(content), lambda path, content=content: path.write_bytes(content))
            assert file is not None
            assert file.read() == content

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(0, 24, 3)))


def test_what_another_process_is_fetching_is_no_left_over(tmp_path):
    disk_cache = DiskCache(tmp_path, max_size_bytes=MIB)
    inside = []

    def download(path):
        path.write_bytes(b"first")
        disk_cache.open(sha256_hex(b"second"), lambda other: other.write_bytes(b"second"))
        inside.extend(kept_in(tmp_path))

    assert disk_cache.open(sha256_hex(b"first"), download).read() == b"first"
    assert inside == sorted([f"{sha256_hex(b'first')}.part", sha256_hex(b"second")])
    assert kept_in(tmp_path) == sorted([sha256_hex(b"first"), sha256_hex(b"second")])


def test_who_waited_for_a_fetch_that_failed_fetches_itself_undisturbed(tmp_path):
    disk_cache = DiskCache(tmp_path, max_size_bytes=MIB)
    sha256 = sha256_hex(b"content")
    fetching, fail = threading.Event(), threading.Event()

    def failing(_path):
        fetching.set()
        fail.wait()
        raise StorageError("The service went away.")

    def download(path):
        path.write_bytes(b"content")
        # Whoever looks for left-overs now must find this one in use.
        disk_cache.open(sha256_hex(b"other"), lambda other: other.write_bytes(b"other"))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(disk_cache.open, sha256, failing)
        fetching.wait()
        second = pool.submit(disk_cache.open, sha256, download)
        while not is_waited_for(tmp_path / f"{sha256}.part"):
            time.sleep(0.01)
        fail.set()
        with pytest.raises(StorageError, match="went away"):
            first.result()
        assert second.result().read() == b"content"


FORKS_WHILE_IT_FETCHES = """
import os, signal, sys, threading, time
from pathlib import Path
from transfer.storage import sha256_hex
from transfer.storage.disk_cache import DiskCache

disk_cache = DiskCache(Path(sys.argv[1]), max_size_bytes=100)
sha256 = sha256_hex(b"content")
children = []

def download(path):
    children.append(os.fork())
    if children == [0]:
        signal.pause()
    path.write_bytes(b"content")
    waiter.start()
    while not is_waited_for(path):
        time.sleep(0.01)

waiter = threading.Thread(target=disk_cache.open, args=(sha256, None), daemon=True)
disk_cache.open(sha256, download)
waiter.join(30)
os.kill(children[0], signal.SIGKILL)
sys.exit(waiter.is_alive())
"""


def test_a_child_that_was_forked_meanwhile_keeps_nobody_waiting(tmp_path):
    script = inspect.getsource(is_waited_for) + FORKS_WHILE_IT_FETCHES
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == 0
