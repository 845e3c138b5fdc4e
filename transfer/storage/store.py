"""The interface behind which all storage stands, and the rules that names and bytes follow everywhere."""

from __future__ import annotations

import abc
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

import pyarrow as pa

from transfer.catalog.layout import PROBES, check_name, is_removable
from transfer.errors import CorruptObjectError, ObjectNotFoundError, StorageError

PARALLEL = 16
"""A bucket answers each in some ten milliseconds."""


def remove_in_steps(store: Store, steps: Iterable[Iterable[str]]) -> None:
    """Remove objects by name; those of a step go when all of the one before are gone. Raises what `remove` raises."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for names in steps:
            list(pool.map(store.remove, names))


_PART_BYTES = 8 * 1024**2
_PARTS_AT_ONCE = 4

Content = TypeVar("Content", bytes, Path)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object of a listing; `name` is what `Store.read` takes."""

    name: str
    size_bytes: int
    stamp: str = field(default="", compare=False)
    """Changes with the content, where the listing of the service says such a thing: ETag and time of change."""
    modified_s: float = field(default=0.0, compare=False)
    """When it was written, in seconds since 1970 by the clock of the storage: what is shown first, decides nothing."""


class Store(abc.ABC):
    """Objects in a folder or a bucket: created once, then only read.

    Names are relative and `/`-separated. Safe to use from several threads. A store holds connections and finds
    credentials for itself, so it is not sent to other processes: send the `StorageConfig` and open it there.
    """

    uri: str
    """Where the store is: an absolute path or `s3://bucket/prefix`."""

    @abc.abstractmethod
    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Bytes of the object from `start`, `length` of them or up to the end; fewer where the object ends earlier.

        Raises ObjectNotFoundError, StorageError, and CorruptObjectError where the store itself knows the digest.
        """

    @abc.abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """The object as a seekable file for Arrow: a memory map in a folder, range requests to a bucket.

        Raises ObjectNotFoundError, StorageError.
        """

    @abc.abstractmethod
    def put(self, name: str, data: bytes | Path) -> bool:
        """Create the object from bytes or a file unless there is one of that name.

        True: this call created it. False: the same bytes were there already. Raises AlreadyExistsError when other
        bytes are there, UnsafeStorageError when the store cannot decide between two writers, StorageError.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose name starts with `prefix`, in folders too, sorted by name."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Size of the object in bytes. Raises ObjectNotFoundError, StorageError."""

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """The bare primitive under `put`: create the object, or answer False where the name is taken.

        Does not look first, so it shows whether the store itself decides. Raises UnsafeStorageError when the store
        says that it cannot, StorageError.
        """

    @abc.abstractmethod
    def replace(self, name: str, data: bytes | Path) -> None:
        """Put the object, in place of what is there: a file that a job was told to write, and that is its user's.

        Whoever reads it meanwhile sees the old or the new one. Of two writers the last one counts. Raises ValueError
        for a name in a folder, as all have that the project itself keeps: those are never overwritten. StorageError.
        """

    @abc.abstractmethod
    def discard(self, probe_name: str) -> None:
        """Remove what a probe wrote, where that is allowed. Refuses every name outside `.probe/`."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object that may go; one that is not there is no error. A folder goes with its last file.

        That is cached features, which can be computed again, the JSON and files of a model version, the copies that
        served, what a run left, and checkpoints of a sweep's packs: each night makes some that would fill any disk.
        That it is one that may go is for the caller to know; the registry marks a version as removed first.

        Raises ValueError for every other name, logs of promotions, pins and removals included. StorageError.
        """

    @abc.abstractmethod
    def _read_unverified(self, name: str) -> bytes: ...

    def put_folder(self, folder: str, source: Path, names: Sequence[str]) -> None:
        """Create the objects `names` below `folder` from files below `source`, in this order.

        On a local disk they appear together, unless some are there already. Raises what `put` raises.
        """
        for name in names:
            self.put(f"{folder}/{name}", source / name)

    def folders(self, folder: str = "") -> Iterator[str]:
        """Names of the folders directly in a folder, or in the store itself, sorted by the names of what is in them.

        A bucket lists no object for that.
        """
        prefix = f"{folder}/" if folder else ""
        inside = (item.name.removeprefix(prefix) for item in self.list(prefix))
        yield from dict.fromkeys(name.partition("/")[0] for name in inside if "/" in name)

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name. Raises StorageError when that cannot be found out."""
        try:
            self.size(name)
        except ObjectNotFoundError:
            return False
        return True

    def read_verified(self, name: str, sha256: str) -> bytes:
        """The whole object, whose SHA-256 must be `sha256` (64 hexadecimal digits).

        A mismatch is read once more, since the transfer may have been at fault. Raises CorruptObjectError after that,
        ObjectNotFoundError, StorageError.
        """
        check_name(name)
        return read_until_intact(lambda: self._read_unverified(name), name=name, uri=self.uri, sha256=sha256)

    def open_verified(self, name: str, sha256: str) -> pa.NativeFile:
        """The whole object as a seekable file, a memory map where there is a local file, verified as `read_verified`.

        What was read from it stays valid when the object is removed. Raises CorruptObjectError, ObjectNotFoundError,
        StorageError.
        """
        return pa.BufferReader(self.read_verified(name, sha256))

    def download(self, name: str, path: Path, *, size_bytes: int | None = None) -> None:
        """Copy the object into a file, in parts, with a few of them in memory. `size_bytes`: of it, where it is known.

        Raises ObjectNotFoundError, StorageError, and OSError where the file cannot be written.
        """
        size = self.size(name) if size_bytes is None else size_bytes
        fetch_to_file(lambda start, length: self.read(name, start=start, length=length), size, path)
        if path.stat().st_size != size:
            raise StorageError(
                f"{name} in {self.uri} changed while it was read.", advice="Wait until it is whole, and run again."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: send its StorageConfig and call open_store in the other process")


def fetch_to_file(fetch: Callable[[int, int], bytes], size: int, path: Path) -> Path:
    """Write the `size` bytes that `fetch(start, length)` gives to a file; memory holds a few parts of them.

    Raises what `fetch` raises, and OSError.
    """
    path.write_bytes(b"")

    def copy(start: int) -> None:
        part = fetch(start, min(_PART_BYTES, size - start))
        with path.open("r+b") as file:
            file.seek(start)
            file.write(part)

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for _ in pool.map(copy, range(0, size, _PART_BYTES)):
            pass
    return path


def read_until_intact(read: Callable[[], Content], *, name: str, uri: str, sha256: str) -> Content:
    """The bytes or the file that `read` gives, if its digest is `sha256` at the first or the second try."""
    for _ in range(2):
        data = read()
        found = content_sha256(data)
        if found == sha256:
            return data
    raise CorruptObjectError(
        f"{name} in {uri} is damaged: SHA-256 of its {content_size(data)} bytes is {found}, expected {sha256}.",
        advice="It was read twice. Restore it from a backup, or make it again under a new version.",
    )


def check_prefix(prefix: str) -> str:
    """The prefix, if it can begin a name. Raises StorageError otherwise."""
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


def check_range(start: int, length: int | None) -> None:
    """Raises ValueError for a range that no file has: that is a bug of the caller."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"start (={start}) and length (={length}) must not be negative")


def check_probe_name(name: str) -> str:
    """The name, if it is one that a probe may remove again."""
    if not check_name(name).startswith(f"{PROBES}/"):
        raise ValueError(f"{name!r} is not below {PROBES}/: it is not of a probe")
    return name


def check_replaceable_name(name: str) -> str:
    """The name, if its object may be replaced: one beside folders, where the project keeps nothing of its own."""
    if "/" in check_name(name):
        raise ValueError(f"{name!r} is in a folder: nothing of the project's own is ever overwritten")
    return name


def check_removable_name(name: str) -> str:
    """The name, if its object may go. Besides what probes wrote, nothing else is ever removed."""
    if not is_removable(check_name(name)):
        raise ValueError(
            f"{name!r} is neither of cached features nor of a model version, a run or a pack: nothing else is removed"
        )
    return name


def open_content(data: bytes | Path) -> BinaryIO:
    """Bytes or a file, as a file to read from its beginning."""
    return io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")


def content_size(data: bytes | Path) -> int:
    """Size in bytes of bytes or a file."""
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def content_sha256(data: bytes | Path) -> str:
    """SHA-256 of bytes or a file as 64 hexadecimal digits."""
    return sha256_hex(data) if isinstance(data, bytes) else sha256_of_file(data)


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
