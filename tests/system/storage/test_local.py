"""A folder whose writer is killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from transfer.storage import open_store


@pytest.fixture
def store(folder_storage):
    return open_store(folder_storage)


def test_a_writer_killed_in_the_middle_leaves_no_object(store, tmp_path):
    fifo = tmp_path / "endless"
    os.mkfifo(fifo)
    script = (
        "import sys; from pathlib import Path\n"
        "from transfer.config import StorageConfig; from transfer.storage import open_store\n"
        "open_store(StorageConfig(uri=sys.argv[1])).put('object', Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, store.uri, str(fifo)]
    # Opening the fifo waits until the writer reads from it.
    with subprocess.Popen(command) as writer, fifo.open("wb") as feed:
        feed.write(b"half of it" * 200_000)
        feed.flush()
        assert any(path.name.startswith(".transfer-tmp-") for path in store.folder.iterdir())
        writer.kill()
        writer.wait()
    assert not store.exists("object")
    assert list(store.list()) == []
    assert store.put("object", b"whole") is True
