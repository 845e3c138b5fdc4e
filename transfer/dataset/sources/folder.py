"""Class folders, `<class>/…/<image>`, and folders of splits around them: on this machine or under an `s3://` prefix."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from transfer.config import StorageConfig
from transfer.dataset.manifest import IGNORED, NO_CLASS_FOLDER, Reject
from transfer.dataset.sources.base import (
    Entry,
    Label,
    class_name_of,
    key_of,
    name_of,
    name_refusal,
    read_file,
    read_object,
    store_of,
)
from transfer.dataset.sources.fetch import nothing_there
from transfer.dataset.sources.walk import (
    FolderWalk,
    LocalFile,
    is_folder,
    is_ignored,
    left_behind,
    scan,
    sidecar,
    with_sidecars,
)
from transfer.dataset.splits import TRAIN, split_named
from transfer.errors import DatasetError
from transfer.storage import StoredObject

logger = logging.getLogger(__name__)

OUTSIDE = "in none of the folders that dataset.splits names"


def recognized_splits(class_folders: Mapping[str, Collection[str]], *, source: str) -> dict[str, str]:
    """The folder of each split if the folders are certainly splits, which is logged; else an empty dict.

    `class_folders`: the subfolders of each folder of the source. The folders are splits if all have usual names of
    splits, one is train, and all have the same subfolders.
    """
    folder_of = {split_named(folder): folder for folder in class_folders}
    contents = {frozenset(inside) for inside in class_folders.values()}
    are_splits = (
        None not in folder_of
        and TRAIN in folder_of
        and len(folder_of) == len(class_folders) > 1
        and len(contents) == 1
        and frozenset() not in contents
    )
    if not are_splits:
        return {}
    found = {split: folder for split, folder in folder_of.items() if split}
    shown = ", ".join(f"{split}: {folder}" for split, folder in found.items())
    logger.info("Folders of %s are taken as splits, as by dataset.splits: {%s}.", source, shown)
    return found


def no_split_folder(split: str, folder: str, *, source: str, found: Iterable[str]) -> DatasetError:
    """The error for a missing folder of `dataset.splits`. `found`: the existing folders."""
    shown = ", ".join(f"`{name}`" for name in sorted(found)[:12])
    return DatasetError(
        f"dataset.splits.{split} is `{folder}`, and there is no such folder with images in {source}; "
        f"the folders there are {shown or 'none'}.",
        advice="Correct dataset.splits, or leave the split out: it is drawn from train then.",
    )


Listed = tuple[StoredObject, Reject | None]
"""An object, and why its name is refused or ignored; None if it is not."""

# Tolerance for the clocks of file systems, and of other machines that write to a shared one.
_CLOCK_GRANULARITY_NS = 2 * 10**9


@dataclass(frozen=True)
class FolderSource:
    """Class folders on this machine. Links are followed."""

    root: str
    kind: str = "folder"
    uri: str | None = None
    """The address that the user gave, if its files were written into `root` just now; None for a folder of the user.

    Times of such files mean nothing, so their stamp is a digest of their bytes."""
    splits: Mapping[str, str] | None = field(default_factory=dict)
    """The folder of each split. Empty: all folders are classes. None: splits are recognized by their names."""
    left_out: tuple[Reject, ...] = ()
    """Images of the source that were not written into `root`, and why."""

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102 - Source says it
        return {"kind": self.kind, "uri": self.uri or self.root}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        # A file that changes at the moment of the listing could keep its mtime and its size ("racy git").
        settled_ns = time.time_ns() - _CLOCK_GRANULARITY_NS
        yield from self.left_out
        folders = self._recognized_splits() if self.splits is None else self.splits
        if not folders:
            yield from self._class_folders(self.root, None, settled_ns, listed=[self.root])
            return
        listed = [os.path.join(self.root, folder) for folder in folders.values()]  # noqa: PTH118
        yield from self._outside(listed)
        for split, folder in folders.items():
            path = os.path.join(self.root, folder)  # noqa: PTH118
            if not os.path.isdir(path):  # noqa: PTH112
                found = [key_of(item.name) for item in _folders_in(self.root)]
                raise no_split_folder(split, folder, source=self.uri or self.root, found=found)
            yield from self._class_folders(path, split, settled_ns, listed=listed)

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return read_file(os.path.join(self.root, name_of(key)), key, max_size_bytes=max_size_bytes)  # noqa: PTH118

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return True

    def _outside(self, split_folders: list[str]) -> Iterator[Reject]:
        """Rejects for everything beside the folders of splits, or beside their parent folders."""
        folders = [self.root]
        for folder in folders:
            for item in scan(folder):
                if any(each.startswith(f"{item.path}/") for each in split_folders):
                    folders.append(item.path)
                elif item.path not in split_folders:
                    yield Reject(self._key(item.path), IGNORED, OUTSIDE)

    def _recognized_splits(self) -> dict[str, str]:
        folders = _folders_in(self.root)
        if not all(split_named(item.name) for item in folders):
            return {}
        inside = {item.name: [class_name_of(each.name) for each in _folders_in(item.path)] for item in folders}
        return recognized_splits(inside, source=self.uri or self.root)

    def _class_folders(
        self, folder: str, split: str | None, settled_ns: int, *, listed: list[str]
    ) -> Iterator[Entry | Label | Reject]:
        """All entries of a folder of class folders, one of `listed`.

        Files that changed after `settled_ns` get no stamp.
        """
        for item in scan(folder):
            # Each class is walked separately: if two classes link to one folder, its images have conflicting labels.
            walk = FolderWalk(self.root, listed)
            key = walk.key(item.path)
            if is_ignored(item.name):
                yield left_behind(key)
            elif not is_folder(item):
                yield _outside_class(key)
            elif back := walk.linked_back(item):
                yield back
            else:
                label = class_name_of(item.name)
                yield Label(label)
                for file in walk.files(item.path):
                    yield file if isinstance(file, Reject) else self._entry(file, label, split, settled_ns)

    def _entry(self, file: LocalFile, label: str, split: str | None, settled_ns: int) -> Entry:
        if self.uri:
            return Entry(file.key, label, file.status.st_size, _digest_of(file.path), split=split)
        changed_ns = file.status.st_mtime_ns
        stamp = str(changed_ns) if changed_ns < settled_ns else ""
        return Entry(file.key, label, file.status.st_size, stamp, split=split)

    def _key(self, path: str) -> str:
        return key_of(os.path.relpath(path, self.root))


@dataclass(frozen=True)
class BucketFolderSource:
    """Class folders under an `s3://` prefix, which is `storage.uri`."""

    storage: StorageConfig
    splits: Mapping[str, str] | None = field(default_factory=dict)
    """As in a FolderSource."""

    @property
    def description(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": "folder", "uri": self.storage.uri}

    def entries(self) -> Iterator[Entry | Label | Reject]:  # noqa: D102
        folders = self._recognized_splits() if self.splits is None else self.splits
        missing, found = dict(folders), set[str]()
        is_there = False
        for item, refused in listed_objects(self.storage):
            is_there = True
            found.update(item.name.split("/")[:-1][:1])
            if not folders:
                yield _in_bucket(item, refused, item.name, None)
                continue
            split = next((each for each, folder in folders.items() if item.name.startswith(f"{folder}/")), None)
            if split is None:
                yield Reject(key_of(item.name), IGNORED, OUTSIDE)
            else:
                missing.pop(split, None)
                yield _in_bucket(item, refused, item.name.removeprefix(f"{folders[split]}/"), split)
        if not is_there:
            raise nothing_there(self.storage.uri, self.storage)
        for split, folder in missing.items():
            raise no_split_folder(split, folder, source=self.storage.uri, found=map(key_of, found))

    def read(self, key: str, *, max_size_bytes: int) -> bytes | Reject:  # noqa: D102
        return read_object(self.storage, name_of(key), key, max_size_bytes=max_size_bytes)

    def is_local(self, key: str) -> bool:  # noqa: D102, ARG002
        return False

    def _recognized_splits(self) -> dict[str, str]:
        """The folder of each split. No object is listed for it, and no folder behind the first that is no split."""
        store = store_of(self.storage)
        inside: dict[str, list[str]] = {}
        for name in store.folders():
            if is_ignored(name):
                continue
            if split_named(name) is None:
                return {}
            inside[name] = [class_name_of(each) for each in store.folders(name) if not is_ignored(each)]
        return recognized_splits(inside, source=self.storage.uri)


def listed_objects(storage: StorageConfig) -> Iterator[Listed]:
    """The objects under the prefix `storage.uri`, each with the reason if its name is refused or ignored."""
    for item, image in with_sidecars(store_of(storage).list(), lambda item: item.name):
        key = key_of(item.name)
        if any(is_ignored(part) for part in item.name.split("/")):
            yield item, left_behind(key)
        elif image:
            yield item, sidecar(key, image)
        else:
            yield item, name_refusal(item.name, key)


def _in_bucket(item: StoredObject, refused: Reject | None, below: str, split: str | None) -> Entry | Reject:
    """The entry of an object; its name below the folder `below` begins with its class."""
    if refused and refused.reason == IGNORED:
        return refused
    key = key_of(item.name)
    folder, slash, _ = below.partition("/")
    if not slash:
        return _outside_class(key)
    return refused or Entry(key, class_name_of(folder), item.size_bytes, item.stamp, split=split)


def _folders_in(folder: str) -> list[os.DirEntry[str]]:
    return [item for item in scan(folder) if not is_ignored(item.name) and is_folder(item)]


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - paths of sources may be bytes that no Path shows
        return hashlib.file_digest(file, "sha256").hexdigest()


def _outside_class(key: str) -> Reject:
    return Reject(key, NO_CLASS_FOLDER, "lies beside the class folders, so it has no class")
