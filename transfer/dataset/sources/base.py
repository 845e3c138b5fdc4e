"""What every source gives: keys with labels, in a fixed order, and the bytes behind a key."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from transfer.config import StorageConfig
from transfer.dataset.rejects import MISSING, UNREADABLE, Reject
from transfer.errors import ObjectNotFoundError, StorageError
from transfer.storage import Store, open_store
from transfer.storage.store import check_name


class Entry(NamedTuple):
    """An image to check: its key, its class, and its size where that is known without reading (else -1).

    `stamp` is another one whenever the bytes are others, as far as a listing can tell; empty where it cannot.
    """

    key: str
    label: str
    size_bytes: int
    stamp: str = ""


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
