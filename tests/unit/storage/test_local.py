from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from transfer.config import StorageConfig
from transfer.errors import AlreadyExistsError, StorageError, UnsafeStorageError
from transfer.storage import open_store, probe, sha256_hex


@pytest.fixture
def store(folder_storage):
    return open_store(folder_storage)


@pytest.fixture
def no_hard_links(monkeypatch):
    """The one thing that a file system with hard links cannot be made to do: refuse them."""

    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_nothing_but_the_objects_is_left_in_the_folder(store):
    store.put("a/object", b"first")
    with pytest.raises(AlreadyExistsError):
        store.put("a/object", b"second")
    probe(store, single_writer=False)
    assert files_in(store.folder) == ["a/object"]


def test_files_that_are_being_written_are_not_listed(store):
    store.put("a/object", b"content")
    (store.folder / "a" / ".transfer-tmp-of-a-killed-process").write_bytes(b"half")
    assert [item.name for item in store.list()] == ["a/object"]


def test_a_reader_never_sees_a_part_of_an_object(store):
    content = os.urandom(4 * 1024**2)
    stop = threading.Event()
    seen = set()

    def look():
        while not stop.is_set():
            for item in store.list():
                seen.add((item.size_bytes, sha256_hex(store.read(item.name))))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(10):
        store.put(f"object-{number}", content)
    stop.set()
    reader.join()
    assert seen <= {(len(content), sha256_hex(content))}


def test_objects_have_the_permissions_that_the_umask_gives(store):
    before = os.umask(0o027)
    try:
        store.put("object", b"content")
    finally:
        os.umask(before)
    assert (store.folder / "object").stat().st_mode & 0o777 == 0o640


def test_a_file_where_a_folder_is_needed_is_a_clear_error(store):
    store.put("a", b"content")
    with pytest.raises(StorageError, match="a/b"):
        store.put("a/b", b"content")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_spent():
    # /proc takes no new files, whoever asks.
    store = open_store(StorageConfig(uri="/proc/transfer-storage"))
    with pytest.raises(StorageError, match="/proc/transfer-storage") as caught:
        probe(store, single_writer=False)
    assert "permissions" in caught.value.advice


def test_a_file_system_without_hard_links_is_refused(store, no_hard_links):
    with pytest.raises(UnsafeStorageError, match="hard links"):
        probe(store, single_writer=False)
    with pytest.raises(UnsafeStorageError, match="single_writer"):
        store.put("object", b"content")
    assert files_in(store.folder) == []


def test_a_file_system_without_hard_links_serves_a_single_writer(folder_storage, no_hard_links):
    store = open_store(folder_storage.model_copy(update={"single_writer": True}))
    probe(store, single_writer=True)
    assert store.put("object", b"content") is True
    assert store.put("object", b"content") is False
    with pytest.raises(AlreadyExistsError):
        store.put("object", b"other")
    assert store.read("object") == b"content"
    assert files_in(store.folder) == ["object"]


def test_a_link_that_a_network_file_system_made_and_then_reported_as_taken_is_ours(store, monkeypatch):
    link = os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)  # What NFS does when the first answer is lost.

    monkeypatch.setattr(os, "link", link_twice)
    assert store.put("object", b"content") is True


def test_a_relative_folder_stays_where_it_was_when_the_process_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store(StorageConfig(uri="storage"))
    monkeypatch.chdir("/")
    store.put("object", b"content")
    assert Path(store.uri) == tmp_path / "storage"
    assert files_in(tmp_path / "storage") == ["object"]
