"""What every source gives: keys with labels, in a fixed order, and the bytes behind a key.

A key is the path relative to the source with `/` between its parts. `%`, characters that do not print (line ends among
them) and bytes that are not UTF-8 are written as `%XX`, byte by byte; a name that is not in Unicode's normal form C
has all its characters beyond ASCII written so. So keys are printable and in normal form C, no two files share one, and
the file's name can be had back.
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
    """Give back the path that a key stands for."""
    return os.fsdecode(unquote_to_bytes(key))


def class_name_of(name: str) -> str:
    """Name the class of a folder: its name in normal form C, as it is where it is text and escaped where it is not."""
    name = unicodedata.normalize("NFC", name)
    try:
        name.encode()
    except UnicodeEncodeError:
        return key_of(name)
    return name


def normal_class_name(name: str) -> str:
    """Bring a class name as people type it into normal form C, without space around it."""
    return unicodedata.normalize("NFC", name).strip()


def _is_plain(character: str) -> bool:
    return character.isprintable() and character != "%"


def _escape(character: str) -> str:
    return quote_from_bytes(os.fsencode(character), safe="")


class Entry(NamedTuple):
    """An image to check: its key, its class, and its size where that is known without reading (else -1).

    `stamp` is another one whenever the bytes are others, as far as a listing can tell; empty where it cannot. `split`
    and `group`: those that the source gives it.
    """

    key: str
    label: str
    size_bytes: int
    stamp: str = ""
    split: str | None = None
    group: str | None = None


class Label(NamedTuple):
    """A class that exists, whether or not an image of it does."""

    name: str


class Source(Protocol):
    """Images somewhere. Picklable, without credentials: those are found where the bytes are read."""

    @property
    def description(self) -> dict[str, Any]:
        """What a dataset version says about where it came from; no secrets."""

    def entries(self) -> Iterator[Entry | Label | Reject]:
        """All images in a fixed order, and what is refused or ignored by its name alone."""

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:
        """Bytes of an image, no more than `max_size_bytes` + 1, or why there are none.

        Raises StorageError when it is the storage that fails, not the one image.
        """

    def is_local(self, key: str) -> bool:
        """Whether only this machine can read the bytes, so that they must travel to workers on others."""


def read_file(path: str | Path, key: str, *, max_size_bytes: int) -> bytes | Reject:
    """Read a local file as `Source.read` promises."""
    try:
        # Opening a named pipe would wait for ever.
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
    """Refuse an object's name that storage does not read: control characters, empty or dotted parts."""
    try:
        check_name(name)
    except StorageError as error:
        return Reject(key, UNREADABLE, error.message)
    return None


@lru_cache(maxsize=16)
def store_of(storage: StorageConfig) -> Store:
    """Open a store once a process."""
    return open_store(storage)
