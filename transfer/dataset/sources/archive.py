"""Archives of class folders, fetched and unpacked into a temporary folder without trusting what they say.

An archive is refused as a whole when one of its members would land outside the folder, is not a plain file or folder,
or comes twice; and when it unpacks to more than allowed, which is counted while unpacking, since headers lie.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from transfer.dataset.sources.keys import is_ignored, key_of
from transfer.errors import DatasetError

ARCHIVE_SUFFIXES = (".zip", ".tar.gz", ".tgz")
MAX_MEMBERS = 10_000_000
_COPY_SIZE_BYTES = 1024**2
# tarfile reads extended headers whole; no honest one comes near.
_MAX_TAR_HEADER_BYTES = 16 * 1024**2
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a way of compressing that zipfile does not know
    RuntimeError,  # an encrypted member
    ValueError,
)


@dataclass
class _Unpacking:
    """What has been taken out so far, and where it goes."""

    uri: str
    folder: Path
    max_size_bytes: int
    members: int = 0
    size_bytes: int = 0

    def refuse(self, found: str) -> DatasetError:
        return DatasetError(
            f"The archive {self.uri} is refused: {found}.",
            advice="Nothing of it was used. Pack plain class folders, or unpack it yourself and give the folder.",
        )

    def target(self, name: str) -> Path:
        """Where a member goes. Raises DatasetError for a name that leads elsewhere."""
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise self.refuse(f"it has more than {MAX_MEMBERS:,} members")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise self.refuse(f"its member `{key_of(name)}` would be written outside of the folder it is unpacked to")
        return self.folder.joinpath(*parts)

    def count(self, size_bytes: int) -> None:
        """Count bytes that came out. Raises DatasetError when they are too many."""
        self.size_bytes += size_bytes
        if self.size_bytes > self.max_size_bytes:
            raise self.refuse(f"it unpacks to more than dataset.source_max_size_bytes, {self.max_size_bytes:,} bytes")

    def write(self, name: str, content: IO[bytes]) -> None:
        """Copy a member's content, counting."""
        target = self.target(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                while piece := content.read(_COPY_SIZE_BYTES):
                    self.count(len(piece))
                    file.write(piece)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise self.refuse(f"its member `{key_of(name)}` comes twice, or as file and as folder") from error


def unpack(archive: Path, folder: Path, *, uri: str, max_size_bytes: int) -> Path:
    """Unpack into the empty `folder`; returns the folder that holds the class folders.

    Raises DatasetError, in which `uri` names the archive.
    """
    unpacking = _Unpacking(uri, folder, max_size_bytes)
    try:
        if uri.lower().endswith(".zip"):
            _unpack_zip(archive, unpacking)
        else:
            _unpack_tar(archive, unpacking)
    except _DAMAGED as error:
        raise unpacking.refuse(f"it is damaged, encrypted or no such archive ({error})") from error
    except OSError as error:
        raise DatasetError(
            f"The archive {uri} could not be unpacked to {folder}: {error.strerror or error}.",
            advice="Check the free space there; TMPDIR chooses another folder.",
        ) from error
    return _class_folders_in(folder)


def _unpack_zip(archive: Path, unpacking: _Unpacking) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            # Some Windows programs write backslashes.
            name = member.filename.replace("\\", "/")
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise unpacking.refuse(f"its member `{key_of(name)}` is a link or a device, not a plain file")
            if name.endswith("/"):
                unpacking.target(name).mkdir(parents=True, exist_ok=True)
            else:
                with opened.open(member) as content:
                    unpacking.write(name, content)


def _unpack_tar(archive: Path, unpacking: _Unpacking) -> None:
    with _ModestGzipFile(archive) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as opened:
        for member in _members(opened):
            if member.isdir():
                unpacking.target(member.name).mkdir(parents=True, exist_ok=True)
            elif member.isreg() and not member.issparse():
                content = opened.extractfile(member)
                if content is not None:
                    unpacking.write(member.name, content)
            else:
                raise unpacking.refuse(f"its member `{key_of(member.name)}` is a link, a device or sparse")
        # tarfile takes a damaged header for the end; the checksum at the end of the stream tells them apart.
        while piece := unzipped.read(_COPY_SIZE_BYTES):
            unpacking.count(len(piece))


def _members(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := opened.next()) is not None:
        yield member
        # tarfile remembers every member it has seen, 1 KB each.
        opened.members = []  # type: ignore[attr-defined]


class _ModestGzipFile(gzip.GzipFile):
    """A file that refuses to be read in one go where an extended header claims to be huge."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_TAR_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _class_folders_in(folder: Path) -> Path:
    """Step into the one folder that many archives have around the class folders."""
    while True:
        with os.scandir(folder) as items:
            inside = [item for item in items if not is_ignored(item.name)]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        with os.scandir(inside[0].path) as items:
            if not any(item.is_dir() and not is_ignored(item.name) for item in items):
                return folder
        folder = Path(inside[0].path)
