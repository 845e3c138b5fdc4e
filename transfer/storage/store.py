"""The interface of all storage, and the rules for names and bytes."""

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
"""Number of parallel requests; a bucket answers each in some ten milliseconds."""


def remove_in_steps(store: Store, steps: Iterable[Iterable[str]]) -> None:
    """Remove objects by name, one step after the other, those of a step in parallel. Raises what `remove` raises."""
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
    """ETag and time of change, which change with the content; empty if the listing of the service lacks them."""
    modified_s: float = field(default=0.0, compare=False)
    """Time of writing in seconds since 1970, by the clock of the storage. It orders lists, and spares young objects."""


class Store(abc.ABC):
    """Objects in a folder or a bucket: created once, then only read.

    Names are relative and `/`-separated. A store is safe to use from several threads. It holds connections and
    credentials, so it cannot be sent to other processes: send the `StorageConfig` and open it there.
    """

    uri: str
    """Address of the store: an absolute path or `s3://bucket/prefix`."""

    @abc.abstractmethod
    def read(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Read `length` bytes of the object from `start`, by default up to its end; fewer if the object ends earlier.

        Raises ObjectNotFoundError, StorageError, and CorruptObjectError if the store itself knows the digest.
        """

    @abc.abstractmethod
    def open(self, name: str) -> pa.NativeFile:
        """Open the object as a seekable file for Arrow: a memory map in a folder, range requests to a bucket.

        Raises ObjectNotFoundError, StorageError.
        """

    @abc.abstractmethod
    def put(self, name: str, data: bytes | Path) -> bool:
        """Create the object from bytes or a file, unless an object has this name.

        Returns True if this call created it, False if an object with the same bytes exists. Raises AlreadyExistsError
        if an object with other bytes exists, UnsafeStorageError if the store cannot decide between two writers,
        StorageError.
        """

    @abc.abstractmethod
    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List all objects whose name starts with `prefix`, also in folders, sorted by name."""

    @abc.abstractmethod
    def newest_entry(self, log: str) -> int:
        """The highest number of an entry in a log; 0 while it is empty. It costs little, however long the log is.

        Raises StorageError.
        """

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Size of the object in bytes. Raises ObjectNotFoundError, StorageError."""

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """The primitive under `put`: create the object, or return False if the name is taken.

        It does not look first, so it shows whether the store itself decides. Raises UnsafeStorageError if the store
        says that it cannot decide, StorageError.
        """

    @abc.abstractmethod
    def replace(self, name: str, data: bytes | Path) -> None:
        """Write the object, and replace an existing one. Only for output files that a user named.

        Readers see the old or the new object, never a mixture. Of two writers the last one wins. Raises ValueError for
        a name in a folder: all objects of the project itself are in folders and never overwritten. StorageError.
        """

    @abc.abstractmethod
    def discard(self, probe_name: str) -> None:
        """Remove an object of a probe, if that is allowed. Raises ValueError for every name outside `.probe/`."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove an object of a kind that may be removed. A missing object is no error. Empty folders are removed, too.

        These kinds are cached features, files of a model version, copies that served, files of a run, and checkpoints
        of a sweep's packs. The caller decides whether this one is still needed; the registry marks a version as removed
        before it removes its files.

        Raises ValueError for every other name, for example in logs of promotions, pins and removals; StorageError.
        """

    @abc.abstractmethod
    def _read_unverified(self, name: str) -> bytes: ...

    def put_folder(self, folder: str, source: Path, names: Sequence[str]) -> None:
        """Create the objects `names` below `folder` from files below `source`, in this order.

        On a local disk they appear together, unless some exist already. Raises what `put` raises.
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
        """Whether an object has this name. Raises StorageError if the storage cannot be asked."""
        try:
            self.size(name)
        except ObjectNotFoundError:
            return False
        return True

    def read_verified(self, name: str, sha256: str) -> bytes:
        """Read the whole object and verify its SHA-256 (64 hexadecimal digits).

        After a mismatch the object is read once more, because the transfer may have damaged it. Raises
        CorruptObjectError after a second mismatch, ObjectNotFoundError, StorageError.
        """
        check_name(name)
        return read_until_intact(lambda: self._read_unverified(name), name=name, uri=self.uri, sha256=sha256)

    def open_verified(self, name: str, sha256: str, *, start: int = 0, length: int | None = None) -> pa.NativeFile:
        """Open the object as a seekable file, verified as in `read_verified`; a local file as a memory map.

        `length`: open only so many bytes from `start`, whose SHA-256 is `sha256`; by default the whole object. Buffers
        that were read from the file stay valid after the object is removed. Raises CorruptObjectError,
        ObjectNotFoundError, StorageError.
        """
        if length is None:
            return pa.BufferReader(self.read_verified(name, sha256))
        part = part_name(name, start, length)
        data = read_until_intact(
            lambda: self.read(name, start=start, length=length), name=part, uri=self.uri, sha256=sha256
        )
        return pa.BufferReader(data)

    def download(self, name: str, path: Path, *, size_bytes: int | None = None) -> None:
        """Copy the object into a file, with a few parts in memory. `size_bytes`: size of the object, if it is known.

        Raises ObjectNotFoundError, StorageError, and OSError if the file cannot be written.
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
    """Write `size` bytes from `fetch(start, length)` to a file, with a few parts in memory.

    Raises what `fetch` raises, and OSError.
    """
    if size <= _PART_BYTES:
        path.write_bytes(fetch(0, size))
        return path
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
    """Read bytes or a file until the digest is `sha256`, at most twice. Raises CorruptObjectError."""
    for _ in range(2):
        data = read()
        found = content_sha256(data)
        if found == sha256:
            return data
    raise CorruptObjectError(
        f"{name} in {uri} is damaged: SHA-256 of its {content_size(data)} bytes is {found}, expected {sha256}.",
        advice="It was read twice. Restore it from a backup, or make it again under a new version.",
    )


def part_name(name: str, start: int, length: int | None) -> str:
    """Name of an object in a message, or of the part of it that is read."""
    return name if length is None else f"{name} (bytes {start:,} to {start + length:,})"


def check_prefix(prefix: str) -> str:
    """Return the prefix if a name can begin with it. Raises StorageError otherwise."""
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


def check_range(start: int, length: int | None) -> None:
    """Raise ValueError for a negative start or length, which is a bug of the caller."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"start (={start}) and length (={length}) must not be negative")


def check_probe_name(name: str) -> str:
    """Return the name if a probe may remove its object. Raises ValueError otherwise."""
    if not check_name(name).startswith(f"{PROBES}/"):
        raise ValueError(f"{name!r} is not below {PROBES}/: it is not of a probe")
    return name


def check_replaceable_name(name: str) -> str:
    """Return the name if its object may be replaced: it is in no folder. Raises ValueError otherwise."""
    if "/" in check_name(name):
        raise ValueError(f"{name!r} is in a folder: nothing of the project's own is ever overwritten")
    return name


def check_removable_name(name: str) -> str:
    """Return the name if its object may be removed. Raises ValueError otherwise."""
    if not is_removable(check_name(name)):
        raise ValueError(
            f"{name!r} is neither of cached features nor of a model version, a run or a pack: nothing else is removed"
        )
    return name


def open_content(data: bytes | Path) -> BinaryIO:
    """Open bytes or a file for reading."""
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
