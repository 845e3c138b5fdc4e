"""Archives of class folders, unpacked into a temporary folder as `tar` and `unzip` would, without trusting them.

An archive is refused as a whole if one of its members would be outside of the folder, is not a plain file or folder, or
occurs twice, or if it unpacks to more bytes than allowed. Bytes are counted while unpacking, because headers can be
wrong. The first bytes decide the kind of archive, not the name, as for `tar`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from transfer.dataset import formats
from transfer.dataset.sources.base import key_of
from transfer.dataset.sources.walk import is_ignored
from transfer.errors import DatasetError

logger = logging.getLogger(__name__)

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_MEMBERS = 10_000_000
_COPY_SIZE_BYTES = 1024**2
_UTF8_NAME = 0x800
_UNICODE_PATH = 0x7075
_DOS_SYSTEMS = {0, 10, 14}  # FAT, NTFS, VFAT
# tarfile reads an extended header into memory; valid archives have much smaller ones.
_MAX_TAR_HEADER_BYTES = 16 * 1024**2
# `xz -9` needs 65 MiB. The format allows an archive to ask for 4 GiB.
MAX_XZ_MEMORY_BYTES = 256 * 1024**2
_XZ_PIECE_SIZE_BYTES = 64 * 1024
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression method that zipfile lacks
    RuntimeError,  # an encrypted member
    ValueError,
)


class RefusedArchiveError(Exception):
    """An archive is not unpacked. The message is a clause: `it has more than 3 members`."""


@dataclass(frozen=True)
class Bounds:
    """Limits of an archive. `size_limit`: name of the limit of its size in errors."""

    max_members: int
    max_size_bytes: int
    size_limit: str
    hard_links: bool = True
    """Whether a file may have several names (hard links)."""


@dataclass
class _Unpacking:
    """The state of an unpacking: the target folder, and what was unpacked so far."""

    folder: Path
    bounds: Bounds
    members: int = 0
    size_bytes: int = 0

    def target(self, name: str) -> Path:
        """Target path of a member. Raises RefusedArchiveError for a name that leads out of the folder."""
        self.members += 1
        if self.members > self.bounds.max_members:
            raise RefusedArchiveError(f"it has more than {self.bounds.max_members:,} members")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise RefusedArchiveError(
                f"its member `{key_of(name)}` would be written outside of the folder it is unpacked to"
            )
        return self.folder.joinpath(*parts)

    def count(self, size_bytes: int) -> None:
        """Count unpacked bytes. Raises RefusedArchiveError if there are too many."""
        self.size_bytes += size_bytes
        if self.size_bytes > self.bounds.max_size_bytes:
            raise RefusedArchiveError(
                f"it unpacks to more than {self.bounds.size_limit}, {self.bounds.max_size_bytes:,} bytes"
            )

    def write(self, name: str, content: IO[bytes]) -> None:
        """Copy a member's content and count its bytes."""
        with self._new(name) as target, target.open("xb") as file:
            while piece := content.read(_COPY_SIZE_BYTES):
                self.count(len(piece))
                file.write(piece)

    def make_folder(self, name: str) -> None:
        """Make the folder of a member; it may be there already."""
        with self._new(name) as target:
            target.mkdir(exist_ok=True)

    def link(self, name: str, linked: str) -> None:
        """Give an unpacked file another name: a hard link of `tar`."""
        with self._new(name) as target:
            file = self.target(linked)
            if not file.is_file():
                raise RefusedArchiveError(
                    f"its member `{key_of(name)}` is a link to `{key_of(linked)}`, no file before it"
                )
            os.link(file, target)

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        """Target path of a member, with the folders around it."""
        target = self.target(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield target
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise RefusedArchiveError(f"its member `{key_of(name)}` comes twice, or as file and as folder") from error


def unpack(archive: Path, folder: Path, *, uri: str, max_size_bytes: int) -> Path:
    """Unpack an archive of class folders into the empty `folder`; returns the folder that holds the class folders.

    Raises DatasetError, in which `uri` names the archive.
    """
    bounds = Bounds(MAX_MEMBERS, max_size_bytes, "dataset.source_max_size_bytes")
    with _refusals_of(uri):
        try:
            unpack_members(archive, folder, bounds=bounds, is_zip=_is_zip(archive, uri))
        except OSError as error:
            raise DatasetError(
                f"The archive {uri} could not be unpacked to {folder}: {error.strerror or error}.",
                advice="Check the free space there; TMPDIR chooses another folder.",
            ) from error
    return _class_folders_in(folder)


def check_archive(archive: Path, *, uri: str) -> None:
    """Open an archive without unpacking it: the directory of a zip, the first member of a tar.

    Raises DatasetError, in which `uri` names the archive, if `unpack` would be refused there.
    """
    try:
        with _refusals_of(uri), _damage_refused():
            if _is_zip(archive, uri):
                zipfile.ZipFile(archive).close()
            else:
                with _uncompressed(archive) as file:
                    tarfile.open(fileobj=file, mode="r:").close()
    except OSError as error:
        raise DatasetError(
            f"The archive {uri} cannot be read: {error.strerror or error}.", advice="Check the file and its rights."
        ) from error


@contextmanager
def _refusals_of(uri: str) -> Iterator[None]:
    try:
        yield
    except RefusedArchiveError as error:
        raise DatasetError(
            f"The archive {uri} is refused: {error}.",
            advice="Nothing of it was used. Pack plain class folders, or unpack it yourself and give the folder.",
        ) from error


def unpack_members(archive: Path, folder: Path, *, bounds: Bounds, is_zip: bool) -> None:
    """Unpack a zip, or a tar with or without compression, into the empty `folder`.

    Raises RefusedArchiveError, after which the unpacked files must not be used, and OSError if they cannot be written.
    """
    unpacking = _Unpacking(folder, bounds)
    with _damage_refused():
        if is_zip:
            _unpack_zip(archive, unpacking)
        else:
            _unpack_tar(archive, unpacking)


@contextmanager
def _damage_refused() -> Iterator[None]:
    """Raise RefusedArchiveError where a library finds that an archive is damaged."""
    try:
        yield
    except _DAMAGED as error:
        raise RefusedArchiveError(f"it is damaged, encrypted or no such archive ({error})") from error


def _unpack_zip(archive: Path, unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            name = _zip_name(member)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise RefusedArchiveError(f"its member `{key_of(name)}` is a link or a device, not a plain file")
            if name.endswith("/"):
                unpacking.make_folder(name)
            else:
                with opened.open(member) as content:
                    unpacking.write(name, content)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """The name that `unzip` would give a member.

    A name is UTF-8 if a flag or an extra field says so. Otherwise it was written by a Unix program as the bytes of the
    file name, or by a DOS or Windows program in code page 437 or UTF-8 (other text is hardly ever valid UTF-8), perhaps
    with backslashes.
    """
    if member.flag_bits & _UTF8_NAME:
        return member.filename
    raw = member.orig_filename.encode("cp437")
    if name := _unicode_path(member.extra, raw):
        return name
    if member.create_system not in _DOS_SYSTEMS:
        return os.fsdecode(raw)
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode("cp437")
    return name if "/" in name else name.replace("\\", "/")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in Info-ZIP's extra field, if the field belongs to this name; else None."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            return content[5:].decode()
    return None


def _unpack_tar(archive: Path, unpacking: _Unpacking) -> None:
    with _uncompressed(archive) as file, tarfile.open(fileobj=file, mode="r:") as opened:
        for member in _members(opened):
            if member.isdir():
                unpacking.make_folder(member.name)
            elif member.islnk() and unpacking.bounds.hard_links:
                unpacking.link(member.name, member.linkname)
            elif member.isreg() and not member.issparse():
                content = opened.extractfile(member)
                if content is not None:
                    unpacking.write(member.name, content)
            else:
                raise RefusedArchiveError(f"its member `{key_of(member.name)}` is a link, a device or sparse")
        # tarfile takes a damaged header for the end of the archive; the checksum of the stream shows the damage.
        while piece := file.read(_COPY_SIZE_BYTES):
            unpacking.count(len(piece))


def _members(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := opened.next()) is not None:
        yield member
        # tarfile keeps every member in memory, 1 KB each.
        opened.members = []  # type: ignore[attr-defined]


def _is_zip(archive: Path, uri: str) -> bool:
    return uri.lower().endswith(".zip") or _start(archive).startswith(b"PK")


def _start(archive: Path) -> bytes:
    with archive.open("rb") as file:
        return file.read(6)


def _uncompressed(archive: Path) -> IO[bytes]:
    """Open a tar, decompressed as its first bytes require."""
    start = _start(archive)
    opened = next((kind for magic, kind in _COMPRESSIONS.items() if start.startswith(magic)), _ModestFile)
    return cast("IO[bytes]", opened(archive))


class _Modest:
    """A file that refuses large single reads, so that a forged extended header cannot fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return cast("bytes", super().read(size))  # type: ignore[misc]


class _ModestFile(_Modest, io.FileIO):
    pass


class _ModestGzipFile(_Modest, gzip.GzipFile):
    pass


class _ModestBZ2File(_Modest, bz2.BZ2File):
    pass


class _XZStream(io.RawIOBase):
    """What comes out of an `.xz` file, forwards only. Unlike `lzma.LZMAFile` it limits the memory that this takes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._pieces = self._unpacked()
        self._piece = b""
        self._position = 0

    def _unpacked(self) -> Iterator[bytes]:
        # A file may have several streams, one behind the other, with zeros between them.
        packed = self._file.read(_XZ_PIECE_SIZE_BYTES)
        while packed:
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY_BYTES)
            while not stream.eof:
                if stream.needs_input:
                    packed = packed or self._file.read(_XZ_PIECE_SIZE_BYTES)
                    if not packed:
                        raise EOFError("it ends within a stream")
                yield stream.decompress(packed, _XZ_PIECE_SIZE_BYTES)
                packed = b""
            packed = stream.unused_data.lstrip(b"\0")
            while not packed and (more := self._file.read(_XZ_PIECE_SIZE_BYTES)):
                packed = more.lstrip(b"\0")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._piece = piece
        size = min(len(buffer), len(self._piece))
        buffer[:size], self._piece = self._piece[:size], self._piece[size:]
        self._position += size
        return size

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET or position < self._position:
            raise tarfile.ReadError("a header leads back")
        while self._position < position and self.read(min(position - self._position, _XZ_PIECE_SIZE_BYTES)):
            pass
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()


class _ModestXZFile(_Modest, io.BufferedReader):
    def __init__(self, path: Path) -> None:
        super().__init__(_XZStream(path), _XZ_PIECE_SIZE_BYTES)


_COMPRESSIONS = {b"\x1f\x8b": _ModestGzipFile, b"BZh": _ModestBZ2File, b"\xfd7zXZ\0": _ModestXZFile}


def _class_folders_in(folder: Path) -> Path:
    """Step into the single folder that many archives have around the class folders, and log it.

    Files beside that folder, for example a license, are ignored unless they are images.
    """
    root = folder
    while True:
        with os.scandir(folder) as items:
            inside = [item for item in items if not is_ignored(item.name)]
        around = [item for item in inside if item.is_dir()]
        if len(around) != 1 or any(item.name.lower().endswith(formats.SUFFIXES) for item in inside if item.is_file()):
            break
        with os.scandir(around[0].path) as items:
            if not any(item.is_dir() and not is_ignored(item.name) for item in items):
                break
        folder = Path(around[0].path)
    if folder != root:
        logger.info(
            "The class folders of the archive are taken from `%s` in it.", key_of(str(folder.relative_to(root)))
        )
    return folder
