"""Objects as files in a folder.

A file is written under a temporary name, flushed to disk, and then gets its name by a hard link. The link fails if the
name is taken, so one of two writers wins, and a name never shows an incomplete file.
"""

# ruff: noqa: D102 - Store documents the methods.
from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, ObjectNotFoundError, StorageError, UnsafeStorageError
from transfer.storage.store import (
    Store,
    StoredObject,
    check_prefix,
    check_probe_name,
    check_range,
    check_removable_name,
    check_replaceable_name,
    open_content,
    read_until_intact,
)

# Errors of file systems without hard links: FAT, some network and container mounts.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class LocalStore(Store):
    """A store in `folder`, which is created by the first write."""

    def __init__(self, folder: Path, *, single_writer: bool = False) -> None:
        self.folder = folder.absolute()
        self.uri = str(self.folder)
        self._single_writer = single_writer

    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        check_range(start, length)
        with self._errors("read", name), path.open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def open(self, name: str) -> pa.NativeFile:
        path = self._path(name)
        with self._errors("read", name):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return pa.memory_map(str(path), "r")

    def open_verified(self, name: str, sha256: str, *, start: int = 0, length: int | None = None) -> pa.NativeFile:
        if length is not None:
            return super().open_verified(name, sha256, start=start, length=length)
        path = self._path(name)
        with self._errors("read", name):
            read_until_intact(lambda: path, name=name, uri=self.uri, sha256=sha256)
            return pa.memory_map(str(path), "r")

    def size(self, name: str) -> int:
        path = self._path(name)
        with self._errors("read", name):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return path.stat().st_size

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        check_prefix(prefix)
        deepest, _, _ = prefix.rpartition("/")
        with self._errors("list", prefix or "everything"):
            found = [item for item in self._walk(self.folder / deepest) if item.name.startswith(prefix)]
        # By code point, which is the order of the UTF-8 bytes, as S3 lists.
        yield from sorted(found, key=lambda item: item.name)

    def newest_entry(self, log: str) -> int:
        with contextlib.suppress(ObjectNotFoundError), self._errors("list", log), os.scandir(self._path(log)) as items:
            return max((layout.entry_number_in(log, f"{log}/{item.name}") or 0 for item in items), default=0)
        return 0

    def put(self, name: str, data: bytes | Path) -> bool:
        path = self._path(name)
        with self._errors("write", name):
            # Looking first only saves writing an existing object again; the link below decides.
            created = not path.exists() and self._link_new(path, data)
            # Flush even if another writer made the directory entry: it may not have reached the disk yet.
            _flush_directory(path.parent)
            if not created and not _same_content(path, data):
                raise AlreadyExistsError(
                    f"{name} in {self.uri} exists already, with other content.",
                    advice="Another writer was first. Nothing is ever overwritten: use a new name or number.",
                )
        return created

    def put_folder(self, folder: str, source: Path, names: Sequence[str]) -> None:
        target = self._path(folder)
        with self._errors("write", folder):
            if not target.exists():
                _move_folder(source, names, target)
        # Files that another writer, or a killed one, put there are compared and completed.
        super().put_folder(folder, source, names)

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        with self._errors("write", name), _temporary_file(path.parent, data) as temporary:
            return self._link(temporary, path)

    def replace(self, name: str, data: bytes | Path) -> None:
        path = self._path(check_replaceable_name(name))
        with self._errors("write", name), _temporary_file(path.parent, data) as temporary:
            temporary.replace(path)
            _flush_directory(path.parent)

    def discard(self, probe_name: str) -> None:
        path = self._path(check_probe_name(probe_name))
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # Fails, as it should, while another probe is there.

    def remove(self, name: str) -> None:
        path = self._path(check_removable_name(name))
        with contextlib.suppress(ObjectNotFoundError), self._errors("remove", name):
            path.unlink()
        self._remove_empty_folders(path.parent)

    def _read_unverified(self, name: str) -> bytes:
        return self.read(name)

    def _path(self, name: str) -> Path:
        return self.folder / layout.check_name(name)

    def _remove_empty_folders(self, folder: Path) -> None:
        """Remove empty folders of model versions, which a server would take for a version, and of runs."""
        with contextlib.suppress(OSError):  # Not empty, or another thread was faster.
            while layout.goes_when_empty(folder.relative_to(self.folder).as_posix()):
                folder.rmdir()
                folder = folder.parent

    def _walk(self, folder: Path) -> Iterator[StoredObject]:
        for directory, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(layout.TEMPORARY_PREFIX)]
            for file in files:
                if file.startswith(layout.TEMPORARY_PREFIX):
                    continue
                path = Path(directory, file)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # Removed since the directory was listed.
                name = path.relative_to(self.folder).as_posix()
                yield StoredObject(name, status.st_size, modified_s=status.st_mtime)

    def _link_new(self, path: Path, data: bytes | Path) -> bool:
        with _temporary_file(path.parent, data) as temporary:
            try:
                return self._link(temporary, path)
            except UnsafeStorageError:
                if not self._single_writer:
                    raise
                # The single writer that the configuration promises has checked the name already. A rename is atomic.
                temporary.rename(path)
                return True

    def _link(self, temporary: Path, path: Path) -> bool:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # Over NFS a retried request can meet the link that its first attempt made.
            return path.samefile(temporary)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            raise UnsafeStorageError(
                f"The file system of {self.uri} has no hard links ({error.strerror}), so two writers could overwrite "
                "each other.",
                advice="Use a folder on another file system, or set storage.single_writer: true where only one job "
                "writes at a time.",
            ) from error
        return True

    @contextlib.contextmanager
    def _errors(self, doing: str, name: str) -> Iterator[None]:
        """Turn OSError into StorageError that names the object."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            if doing == "write":
                raise self._failed(doing, name, error) from error
            raise ObjectNotFoundError(
                f"There is no object {name} in {self.uri}.", advice="Check the name and the storage's uri."
            ) from error
        except OSError as error:
            raise self._failed(doing, name, error) from error

    def _failed(self, doing: str, name: str, error: OSError) -> StorageError:
        return StorageError(
            f"Could not {doing} {name} in {self.uri}: {error.strerror or error}.",
            advice="Check the folder's permissions, its free space, and that no file stands where a folder is needed.",
        )


def _move_folder(source: Path, names: Sequence[str], target: Path) -> None:
    """Copy files into a temporary folder and rename it when all are on disk. If the name is taken, nothing changes."""
    temporary = target.parent / f"{layout.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        _make_directory(temporary)
        for name in names:
            copy = temporary / name
            _make_directory(copy.parent)
            shutil.copyfile(source / name, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
        _flush_directory(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _temporary_file(directory: Path, data: bytes | Path) -> Iterator[Path]:
    """A temporary file with the content, flushed to disk, removed after the block."""
    _make_directory(directory)
    temporary = directory / f"{layout.TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        # Not `tempfile`, whose files only the owner can read: the user's umask decides the permissions.
        with open_content(data) as source, temporary.open("xb") as target:
            shutil.copyfileobj(source, target, 1024**2)
            target.flush()
            os.fsync(target.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    directory.mkdir(exist_ok=True)
    _flush_directory(directory.parent)


def _flush_directory(directory: Path) -> None:
    """Flush a directory to disk, so that new names in it survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _same_content(path: Path, data: bytes | Path) -> bool:
    if isinstance(data, bytes):
        return path.stat().st_size == len(data) and path.read_bytes() == data
    return filecmp.cmp(path, data, shallow=False)
