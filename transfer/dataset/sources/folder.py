"""Class folders: `<class>/…/<image>`, on this machine or under an `s3://` prefix."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transfer.config import StorageConfig
from transfer.dataset.rejects import IGNORED, MISSING, NO_CLASS_FOLDER, UNREADABLE, Reject
from transfer.dataset.sources.base import Entry, Label, name_refusal, read_file, read_object, store_of
from transfer.dataset.sources.keys import class_name_of, is_ignored, key_of, name_of
from transfer.errors import DatasetError

_Directory = tuple[int, int]

# Of the clocks of file systems, and of other machines that write to a shared one.
_CLOCK_GRANULARITY_NS = 2 * 10**9


@dataclass(frozen=True)
class FolderSource:
    """Class folders on this machine. Links are followed."""

    root: str
    kind: str = "folder"
    uri: str | None = None
    """What the user named, where that is not `root`: an archive that was unpacked there.

    Files that were written just now say nothing by their times, so they are told by their bytes."""

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": self.kind, "uri": self.uri or self.root}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        # A file that changes in the very moment in which it is listed could keep its time and its size, as in git.
        settled_ns = time.time_ns() - _CLOCK_GRANULARITY_NS
        for item in _scan(self.root):
            key = key_of(item.name)
            if is_ignored(item.name):
                yield _ignored(key)
            elif _is_folder(item):
                label = class_name_of(item.name)
                yield Label(label)
                yield from self._below(item.path, label, frozenset(), settled_ns)
            else:
                yield _outside_class(key)

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return read_file(os.path.join(self.root, name_of(key)), key, max_size_bytes=max_size_bytes)  # noqa: PTH118

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return True

    def _below(
        self, folder: str, label: str, above: frozenset[_Directory], settled_ns: int
    ) -> Iterator[Entry | Reject]:
        """Files below a class folder. `above` holds the folders on the way, since links can make a circle.

        Files that changed after `settled_ns` get no stamp.
        """
        status = os.stat(folder)  # noqa: PTH116
        here = (status.st_dev, status.st_ino)
        key = self._key(folder)
        if here in above:
            yield Reject(key, IGNORED, "a link to a folder that it is in")
            return
        for item in _scan(folder):
            if is_ignored(item.name):
                yield _ignored(self._key(item.path))
            elif _is_folder(item):
                yield from self._below(item.path, label, above | {here}, settled_ns)
            else:
                yield self._file(item, label, settled_ns)

    def _file(self, item: os.DirEntry[str], label: str, settled_ns: int) -> Entry | Reject:
        key = self._key(item.path)
        try:
            status = item.stat()
        except FileNotFoundError:
            return Reject(key, MISSING, "a link to nothing")
        except OSError as error:
            return Reject(key, UNREADABLE, str(error.strerror))
        if not stat.S_ISREG(status.st_mode):
            return Reject(key, UNREADABLE, "not a regular file")
        if self.uri:
            return Entry(key, label, status.st_size, _digest_of(item.path))
        stamp = str(status.st_mtime_ns) if status.st_mtime_ns < settled_ns else ""
        return Entry(key, label, status.st_size, stamp)

    def _key(self, path: str) -> str:
        return key_of(os.path.relpath(path, self.root))


@dataclass(frozen=True)
class BucketFolderSource:
    """Class folders under an `s3://` prefix, which is `storage.uri`."""

    storage: StorageConfig

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": "folder", "uri": self.storage.uri}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        for item in store_of(self.storage).list():
            key = key_of(item.name)
            *folders, name = item.name.split("/")
            if any(is_ignored(part) for part in (*folders, name)):
                yield _ignored(key)
            elif not folders:
                yield _outside_class(key)
            else:
                yield name_refusal(item.name, key) or Entry(key, class_name_of(folders[0]), item.size_bytes, item.stamp)

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return read_object(self.storage, name_of(key), key, max_size_bytes=max_size_bytes)

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return False


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        raise DatasetError(
            f"The folder {key_of(folder)} cannot be read: {error.strerror}.",
            advice="Check that it exists and its rights.",
        ) from error


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - paths of sources may be bytes that no Path shows
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        # A link to itself, for example. Looking at it as a file says what is wrong.
        return False


def _ignored(key: str) -> Reject:
    return Reject(key, IGNORED, "hidden, or left behind by the system")


def _outside_class(key: str) -> Reject:
    return Reject(key, NO_CLASS_FOLDER, "lies beside the class folders, so it has no class")
