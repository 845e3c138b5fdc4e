"""The interface of sources: keys with labels in a fixed order, and the bytes of each key.

A key is the path relative to the source with `/` between its parts. `%`, unprintable characters (line ends included)
and bytes that are not UTF-8 are escaped as `%XX`, byte by byte. If a name is not in Unicode normal form C, all of its
characters beyond ASCII are escaped. So keys are printable and in normal form C, no two files share a key, and the name
of the file can be recovered.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from transfer.catalog.layout import check_name
from transfer.config import StorageConfig
from transfer.dataset.manifest import MISSING, UNREADABLE, Reject
from transfer.errors import ArchivedObjectError, ObjectNotFoundError, StorageError
from transfer.storage import Store, open_store


def key_of(name: str) -> str:
    """Escape a path as Python gives it, undecodable bytes as surrogates."""
    if name.isascii() and name.isprintable() and "%" not in name:
        return name
    key = "".join(character if _is_plain(character) else _escape(character) for character in name)
    if not unicodedata.is_normalized("NFC", key):
        key = "".join(character if character.isascii() else _escape(character) for character in key)
    return key


def name_of(key: str) -> str:
    """The path of a key, the inverse of `key_of`."""
    return os.fsdecode(unquote_to_bytes(key))


def class_name_of(name: str) -> str:
    """Class name of a folder: its name in normal form C, escaped as far as it is not text."""
    name = unicodedata.normalize("NFC", name)
    try:
        name.encode()
    except UnicodeEncodeError:
        return key_of(name)
    return name


def normal_class_name(name: str) -> str:
    """Bring a typed class name into normal form C, and strip spaces around it."""
    return unicodedata.normalize("NFC", name).strip()


def _is_plain(character: str) -> bool:
    return character.isprintable() and character != "%"


def _escape(character: str) -> str:
    return quote_from_bytes(os.fsencode(character), safe="")


class Entry(NamedTuple):
    """An image to check: its key, its class, and its size in bytes if that is known without reading (else -1).

    `stamp`: changes whenever the bytes change, as far as a listing can show; empty if it cannot. `split`, `group`:
    given by the source.
    """

    key: str
    label: str
    size_bytes: int
    stamp: str = ""
    split: str | None = None
    group: str | None = None


class Label(NamedTuple):
    """A class that exists, even if it has no image."""

    name: str


class Source(Protocol):
    """A source of images. Picklable and without credentials, which are looked up where the bytes are read."""

    @property
    def description(self) -> dict[str, Any]:
        """Description of the source for the dataset version; without secrets."""

    def entries(self) -> Iterator[Entry | Label | Reject]:
        """All images in a fixed order, and the files that are refused or ignored by their names."""

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:
        """Read at most `max_size_bytes` + 1 bytes of an image, or say why it is refused.

        Raises StorageError if the storage fails, rather than this image.
        """

    def is_local(self, key: str) -> bool:
        """Whether only this machine can read the image, so that its bytes must be sent to workers on other machines."""


def read_file(path: str | Path, key: str, *, max_size_bytes: int) -> bytes | Reject:
    """Read a local file as `Source.read` promises."""
    try:
        # Opening a named pipe would wait forever.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - paths of sources may be bytes that no Path shows
            return Reject(key, UNREADABLE, "not a regular file")
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(max_size_bytes + 1)
    except FileNotFoundError:
        return Reject(key, MISSING, "there is no such file")
    except (OSError, ValueError) as error:
        return Reject(key, UNREADABLE, str(getattr(error, "strerror", None) or error))


def read_object(storage: StorageConfig, name: str, key: str, *, max_size_bytes: int) -> bytes | Reject:
    """Read an object of a bucket as `Source.read` promises."""
    if refusal := name_refusal(name, key):
        return refusal
    try:
        return store_of(storage).read(name, length=max_size_bytes + 1)
    except ObjectNotFoundError:
        return Reject(key, MISSING, "there is no such object")
    except ArchivedObjectError:
        return Reject(key, UNREADABLE, "the object is archived, and must be restored before it can be read")


def name_refusal(name: str, key: str) -> Reject | None:
    """Refuse names of objects that storage cannot read: control characters, empty or dotted parts."""
    try:
        check_name(name)
    except StorageError as error:
        return Reject(key, UNREADABLE, error.message)
    return None


@lru_cache(maxsize=16)
def store_of(storage: StorageConfig) -> Store:
    """Open a store; a process opens each one once."""
    return open_store(storage)
