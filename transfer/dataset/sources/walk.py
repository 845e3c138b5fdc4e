"""The files below a local folder, and the rules for files of class folders that are left out.

The ledger lists these files as `ignored`, and they do not count as refused.

Links are followed. A folder is entered once. A link to a folder that is listed anyway, or that contains the root, is
`ignored`; otherwise its files would appear again, under another class.
"""

from __future__ import annotations

import difflib
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transfer.config import DatasetConfig
from transfer.dataset.manifest import IGNORED, MISSING, UNREADABLE, Reject
from transfer.dataset.sources.base import Entry, Label, Source, key_of, name_of, normal_class_name
from transfer.errors import DatasetError

Item = TypeVar("Item")

# Files and folders of Windows, macOS, Synology, QNAP, ext4, Picasa, and of tools that cache thumbnails.
_LEFT_BEHIND = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),
        *("picasa.ini", "zbthumbnail.info", "__pycache__"),
    }
)
SIDECAR_SUFFIXES = (".json", ".xml", ".txt", ".csv", ".xmp", ".yaml", ".yml", ".md", ".html", ".aae", ".thm")
"""Suffixes of files that annotation tools, cameras and photo managers write beside an image, under its name."""


def is_ignored(name: str) -> bool:
    """Whether systems or tools create a file or folder of this name: hidden, a recycle bin, or a thumbnail cache."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def left_behind(key: str) -> Reject:
    """The line of the ledger for a file or folder that `is_ignored`."""
    return Reject(key, IGNORED, "hidden, or left behind by the system")


def with_sidecars(items: Iterable[Item], name_of_item: Callable[[Item], str]) -> Iterator[tuple[Item, str | None]]:
    """Pair each item with the name of the file that it is a sidecar of, None if it is no sidecar.

    A sidecar has one of SIDECAR_SUFFIXES, and its name up to the first dot is that of another file beside it. `items`
    are sorted by name (a path), so names with the same beginning are neighbors.
    """

    def beginning(item: Item) -> str:
        folder, slash, name = name_of_item(item).rpartition("/")
        return folder + slash + name.partition(".")[0]

    for _, alike in groupby(items, beginning):
        group = list(alike)
        names = [name_of_item(item) for item in group]
        image = next((name for name in names if not name.lower().endswith(SIDECAR_SUFFIXES)), None)
        for item, name in zip(group, names, strict=True):
            yield item, image if name.lower().endswith(SIDECAR_SUFFIXES) else None


def sidecar(key: str, image: str) -> Reject:
    """The line of the ledger for a sidecar of the file `image`."""
    return Reject(key, IGNORED, f"a sidecar file of {key_of(image)}")


def is_excluded(key: str, pattern: str) -> bool:
    """Whether a pattern of `dataset.exclude` matches this key, or a folder that contains it.

    A pattern without a slash is compared with each part of the path, a pattern with slashes with the path from the
    source on. `*` matches anything, slashes included.
    """
    parts = unicodedata.normalize("NFC", name_of(key)).split("/")
    if "/" not in pattern:
        return any(fnmatchcase(part, pattern) for part in parts)
    pattern = pattern.rstrip("/")
    return any(fnmatchcase("/".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))


@dataclass(frozen=True)
class SelectedSource:
    """A source without the files that `dataset.exclude` matches, and only with the classes in `dataset.classes`."""

    source: Source
    options: DatasetConfig

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return self.source.description

    def entries(self) -> Iterator[Entry | Label | Reject]:
        """The selected entries, and a line of the ledger for every other one.

        Raises DatasetError at the end for names in `dataset.classes` that the source lacks.
        """
        found: set[str] = set()
        for item in self.source.entries():
            if isinstance(item, Label):
                found.add(self._class_of(item.name))
                if self._why_not(key_of(item.name), item.name) is None:
                    yield item
                continue
            label = item.label if isinstance(item, Entry) else None
            if label is not None:
                found.add(self._class_of(label))
            reason = self._why_not(item.key, label)
            yield item if reason is None else Reject(item.key, IGNORED, reason)
        self._check_classes(found)

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return self.source.read(key, max_size_bytes=max_size_bytes)

    def is_local(self, key: str) -> bool:  # noqa: D102
        return self.source.is_local(key)

    def _class_of(self, label: str) -> str:
        return self.options.rename_classes.get(label, label)

    def _why_not(self, key: str, label: str | None) -> str | None:
        pattern = next((pattern for pattern in self.options.exclude if is_excluded(key, pattern)), None)
        if pattern is not None:
            return f"dataset.exclude has `{pattern}`"
        wanted = self.options.classes
        if label is not None and wanted is not None and self._class_of(label) not in wanted:
            return f"class {self._class_of(label)} is not in dataset.classes"
        return None

    def _check_classes(self, found: Collection[str]) -> None:
        missing = [name for name in self.options.classes or () if name not in found]
        if missing:
            near = difflib.get_close_matches(normal_class_name(missing[0]), sorted(found), n=3, cutoff=0.5)
            nearest = f"; near it: {', '.join(f'`{name}`' for name in near)}" if near else ""
            raise DatasetError(
                f"dataset.classes has `{missing[0]}`, and {self.description['uri']} has no such class{nearest}.",
                advice="Correct the name, or take it out of dataset.classes. Names are those after "
                "dataset.rename_classes.",
            )


_Directory = tuple[int, int]


class LocalFile(NamedTuple):
    """A regular file. Its key is its path below the root."""

    key: str
    path: str
    status: os.stat_result


@dataclass
class FolderWalk:
    """A walk below `root`, or below some of its folders."""

    root: str
    listed: Sequence[str] = ()
    """The folders below the root that are walked; empty: the whole root."""
    skips_unreadable: bool = False
    """Whether an unreadable folder becomes a reject. Otherwise it is an error, because its content is unknown."""
    _entered: set[_Directory] = field(default_factory=set)

    def files(self, folder: str | None = None) -> Iterator[LocalFile | Reject]:
        """All files below the root, or below a folder of it, in a fixed order. Raises DatasetError."""
        folder = self.root if folder is None else folder
        key = self.key(folder)
        try:
            here, items = _identity(folder), scan(folder)
        except DatasetError as error:
            if not self.skips_unreadable:
                raise
            yield Reject(key, UNREADABLE, error.message)
            return
        if here in self._entered:
            yield Reject(key, IGNORED, "a link to a folder that is read already")
            return
        self._entered.add(here)
        sidecar_of = dict(with_sidecars([item.name for item in items if not is_folder(item)], str))
        for item in items:
            if is_ignored(item.name):
                yield left_behind(self.key(item.path))
            elif is_folder(item):
                back = self.linked_back(item)
                yield from [back] if back else self.files(item.path)
            elif image := sidecar_of.get(item.name):
                yield sidecar(self.key(item.path), image)
            else:
                yield _file(item, self.key(item.path))

    def linked_back(self, item: os.DirEntry[str]) -> Reject | None:
        """Reject a link to a folder that contains the root, or that is listed anyway."""
        if not item.is_symlink():
            return None
        target = os.path.realpath(item.path)
        if _is_within(self._real_root, target):
            return Reject(self.key(item.path), IGNORED, "a link to a folder that it is in")
        for folder in map(os.path.realpath, self.listed or [self.root]):
            inside = Path(os.path.relpath(target, folder))
            if _is_within(target, folder) and not any(is_ignored(part) for part in inside.parts):
                there = os.path.relpath(target, self._real_root)
                return Reject(self.key(item.path), IGNORED, f"a link to {key_of(there)}, which is read there")
        return None

    def key(self, path: str) -> str:
        """The key of a path."""
        return key_of(os.path.relpath(path, self.root))

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)


def scan(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by the bytes of their names. Raises DatasetError if it cannot be read."""
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=lambda item: os.fsencode(item.name))
    except OSError as error:
        raise _unreadable(folder, error) from error


def is_folder(item: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return item.is_dir()
    except OSError:
        # For example a link to itself. Reading it as a file will report the error.
        return False


def _identity(folder: str) -> _Directory:
    try:
        status = os.stat(folder)  # noqa: PTH116 - paths of sources may be bytes that no Path shows
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _unreadable(folder: str, error: OSError) -> DatasetError:
    return DatasetError(
        f"The folder {key_of(folder)} cannot be read: {error.strerror}.", advice="Check that it exists and its rights."
    )


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder


def _file(item: os.DirEntry[str], key: str) -> LocalFile | Reject:
    try:
        status = item.stat()
    except FileNotFoundError:
        return Reject(key, MISSING, "a link to nothing")
    except OSError as error:
        return Reject(key, UNREADABLE, str(error.strerror))
    if not stat.S_ISREG(status.st_mode):
        return Reject(key, UNREADABLE, "not a regular file")
    return LocalFile(key, item.path, status)
