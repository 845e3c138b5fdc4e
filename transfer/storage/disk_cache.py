"""A cache of a bucket's objects on a local disk: fetched once a host, memory-mapped, evicted by least recent use.

<folder>/<sha256>        a whole object
<folder>/<sha256>.part   an object that is being fetched; its writer holds its lock

The lock (flock) belongs to the file and ends with the process, so a `.part` without a lock is left over from a killed
process. Only the holder of the lock renames or removes a `.part`. All processes of a user share the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from transfer.storage.store import sha256_of_file

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = ".part"
_PROCESSES = 16
"""Number of processes that may fill the folder at the same time without listing it after each object of their own."""
_SLACK = 1024
"""A process may add this fraction of the limit on top of it. Otherwise each object listed a folder that is full."""
_log = logging.getLogger("transfer.storage")


class DiskCache:
    """Objects by their SHA-256 in `folder`, together at most `max_size_bytes`. Safe for several processes."""

    def __init__(self, folder: Path, *, max_size_bytes: int) -> None:
        self.folder = folder
        self._max_size_bytes = max_size_bytes
        self._warned = False
        # Free space when this process last listed the folder, and the size of the objects that it added since. Listing
        # after each object would take time quadratic in their number. None before the first listing.
        self._free_bytes: int | None = None
        self._added_bytes = 0

    def open(self, sha256: str, download: Callable[[Path], None]) -> pa.NativeFile | None:
        """Open an object as a memory map and verify its digest. None, with one warning, if the folder cannot be used.

        If several processes ask for a missing object, one of them calls `download`, which writes and verifies it in
        an existing file. The map stays valid after the object is evicted. Raises what `download` raises but OSError.
        """
        if not _SHA256.fullmatch(sha256):
            return None  # As a file name it could lead outside of the folder.
        try:
            file = self._kept(sha256)
            return self._fetched(sha256, download) if file is None else file
        except OSError as error:
            self._warn(error)
            return None

    def _kept(self, sha256: str) -> pa.NativeFile | None:
        path = self.folder / sha256
        try:
            if sha256_of_file(path) == sha256:
                file = pa.memory_map(str(path), "r")
                _touch(path)
                return file
        except FileNotFoundError:
            return None
        _log.warning("%s was damaged and is fetched again", path)
        path.unlink(missing_ok=True)
        return None

    def _fetched(self, sha256: str, download: Callable[[Path], None]) -> pa.NativeFile:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / sha256
        with _only_writer_of(path.with_name(sha256 + _PART)) as part:
            file = self._kept(sha256)
            if file is not None:
                return file  # Another process fetched it in the meantime.
            download(part)
            file = pa.memory_map(str(part), "r")
            if file.size() <= self._max_size_bytes:
                _touch(part)
                part.rename(path)
                self._added_bytes += file.size()
                if self._free_bytes is None or self._added_bytes > max(
                    self._free_bytes // _PROCESSES, self._max_size_bytes // _SLACK
                ):
                    self._evict(newest=path)
            return file

    def _evict(self, *, newest: Path) -> None:
        """Remove files of killed processes, then the least recently used objects until the rest fits.

        Another process may evict at the same time, so a file may be gone already.
        """
        objects = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == _PART:
                    _remove_unless_locked(path)
                elif _SHA256.fullmatch(path.name):
                    objects.append((path.stat(), path))
        total_bytes = sum(stat.st_size for stat, _ in objects)
        for stat, path in sorted(objects, key=lambda item: item[0].st_mtime_ns):
            if total_bytes <= self._max_size_bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                total_bytes -= stat.st_size
        self._free_bytes, self._added_bytes = self._max_size_bytes - total_bytes, 0

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            _log.warning(
                "Objects are not kept in %s: %s. storage.cache_folder and storage.cache_size_bytes say where they may "
                "be, and how much of them; until then each use reads them from the bucket.",
                self.folder,
                error.strerror or error,
            )
        self._warned = True


@contextlib.contextmanager
def _only_writer_of(part: Path) -> Iterator[Path]:
    """Hold the lock of a file inside the block. The file is created, and removed afterwards unless it was renamed."""
    file = _lock(part)
    try:
        yield part
    finally:
        if _is_named(file, part):
            part.unlink()
        # Unlock explicitly: a child process that was forked meanwhile has a copy of the open file and with it the lock.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _lock(part: Path) -> BinaryIO:
    while True:
        file = part.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, part):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # The previous holder of the lock renamed or removed this file.


def _remove_unless_locked(part: Path) -> None:
    with part.open("r+b") as file, contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(file, part):
            part.unlink()


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Whether the path still names this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _touch(path: Path) -> None:
    """Mark a file as used now, by its mtime: many file systems do not record the time of access."""
    now = time.time_ns()
    with contextlib.suppress(OSError):  # The folder is read-only, or another process just evicted the file.
        os.utime(path, ns=(now, now))
