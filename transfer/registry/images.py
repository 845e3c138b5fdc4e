"""Images for batch prediction: found in folders, prefixes and lists, and read as an ingest reads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.dataset.manifest import IGNORED, MISSING, NO_PATH, UNREADABLE, Reject
from transfer.dataset.refusals import RejectReason
from transfer.dataset.sources.base import key_of, read_file, read_object, store_of
from transfer.dataset.sources.folder import listed_objects
from transfer.dataset.sources.table import TableSource
from transfer.dataset.sources.tabular import Table, is_table
from transfer.dataset.sources.walk import FolderWalk
from transfer.errors import DatasetError

logger = logging.getLogger(__name__)

_LIST_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Image:
    """A file to predict."""

    key: str
    """Key of the image in the predictions."""
    place: str
    """A path, or the address of an object."""
    size_bytes: int
    """Size of the file; -1 if it is unknown before the file is read."""
    storage: StorageConfig
    """Options of a bucket, such as its endpoint."""
    refused: Reject | None = None
    """Reason for which the file cannot be read, if its listing shows one."""

    def read(self, *, max_size_bytes: int) -> bytes | Reject:
        """Read the bytes of the image. Returns a reject if it cannot be read or is larger than `max_size_bytes`.

        Of a file of unknown size at most `max_size_bytes` + 1 bytes are read. Raises StorageError.
        """
        if self.refused:
            return self.refused
        if self.size_bytes > max_size_bytes:
            return Reject(self.key, RejectReason.TOO_LARGE_FILE, f"{self.size_bytes} bytes")
        if not self.place.startswith("s3://"):
            return read_file(self.place, self.key, max_size_bytes=max_size_bytes)
        bucket, _, name = self.place.removeprefix("s3://").partition("/")
        storage = self.storage.model_copy(update={"uri": f"s3://{bucket}"})
        return read_object(storage, name, self.key, max_size_bytes=max_size_bytes)


def find_images(
    places: Sequence[str],
    storage: StorageConfig,
    *,
    alone: bool | None = None,
    must_exist: bool = True,
    path_column: str = "path",
) -> list[Image]:
    """Find the files at `places`, in order and without duplicates.

    A place is an image, a folder, a prefix, a list of these (a `.txt` file with one place a line, relative to the
    folder of the list), or a table (`.csv`, `.tsv`, `.parquet`) with paths of images in `path_column`. The key of an
    image is its path below the folder; unless `alone` (default: there is only one place), the folder's own path
    precedes it. The key of an image that is itself a place is the place as written; that of an image in a table is its
    path as it stands there. A file that exists but cannot be read is returned with `refused`; so is a place without
    files, unless places `must_exist`. Hidden files, sidecar files and files of the system (such as `Thumbs.db`) are
    skipped. Raises
    DatasetError for a place without files that must exist, StorageError.
    """
    found: dict[str, Image] = {}
    named = left_out = 0
    alone = len(places) == 1 if alone is None else alone
    for place in places:
        if is_table(place):
            here = list(_in_table(place, storage, path_column))
        elif _is_list(place):
            here = list(_listed(place, storage))
        else:
            here = list(_files_at(place, storage, alone=alone))
        images = [image for image in here if image.refused is None or image.refused.reason != IGNORED]
        if not images and not must_exist:
            images = [_missing(place, place, storage)]
        elif not images:
            among = f" but {len(here):,} that are hidden or left behind by the system" if here else ""
            raise DatasetError(
                f"There are no files in {key_of(place)}{among}.",
                advice="Give images, or folders or s3:// prefixes of them.",
            )
        for image in images:
            found.setdefault(image.place, image)
        named += len(images)
        left_out += len(here) - len(images)
    if left_out:
        logger.info("Left out, since they are hidden, sidecar files or left behind by the system: %d.", left_out)
    if named > len(found):
        logger.info("Images that were named more than once are answered once: %d.", named - len(found))
    return list(found.values())


def _files_at(place: str, storage: StorageConfig, *, alone: bool) -> Iterator[Image]:
    """All files at a place, also those that are to be skipped; none if the place does not exist."""
    before = "" if alone else f"{_shown(place.rstrip('/'))}/"
    if place.startswith("s3://"):
        yield from _objects_at(place, before, storage)
        return
    path = str(_local(place))
    if os.path.isdir(path):  # noqa: PTH112 - paths may be bytes that no Path shows
        for file in FolderWalk(path, skips_unreadable=True).files():
            if isinstance(file, Reject):
                yield Image(f"{before}{file.key}", f"{path}/{file.key}", -1, storage, file)
            else:
                yield Image(f"{before}{file.key}", file.path, file.status.st_size, storage)
    elif os.path.lexists(path):
        yield Image(_shown(place), path, -1, storage)


def _objects_at(place: str, before: str, storage: StorageConfig) -> Iterator[Image]:
    prefix = storage.model_copy(update={"uri": place})
    is_folder = False
    for item, refused in listed_objects(prefix):
        is_folder = True
        key = f"{before}{key_of(item.name)}"
        yield Image(key, f"{place.rstrip('/')}/{item.name}", item.size_bytes, storage, refused)
    folder, _, name = place.rpartition("/")
    # `s3://bucket` alone has no object name.
    if not is_folder and name and not folder.endswith(":/"):
        store = store_of(storage.model_copy(update={"uri": folder}))
        if store.exists(name):
            yield Image(_shown(place), place, store.size(name), storage)


def _is_list(place: str) -> bool:
    return place.lower().endswith(_LIST_SUFFIX) and not place.startswith("s3://") and _local(place).is_file()


def _listed(place: str, storage: StorageConfig) -> Iterator[Image]:
    """The images of a list. A line without a file becomes an image with `refused`."""
    path = _local(place)
    for line in filter(None, map(str.strip, os.fsdecode(path.read_bytes()).splitlines())):
        written = line if "://" in line else str(path.parent / path_here(line))
        images = list(_files_at(written, storage, alone=False))
        if not images:
            images = [_missing(line, written, storage)]
        if [image.place for image in images] == [written]:
            images = [replace(images[0], key=_shown(line))]
        yield from images


def _in_table(place: str, storage: StorageConfig, path_column: str) -> Iterator[Image]:
    """The images of a table. A row without a path becomes an image with `refused`."""
    uri = place if place.startswith("s3://") else str(_local(place))
    folder, _, name = uri.rpartition("/")
    if not store_of(storage.model_copy(update={"uri": folder})).exists(name):
        return
    table = Table(uri, (uri,), path_column, None, storage)
    if column := table.image_column():
        raise DatasetError(
            f"The table {place} has images in its column `{column}`, and `predict` takes tables of paths.",
            advice="Ingest it, and predict the dataset version: `--dataset NAME`.",
        )
    source = TableSource(table)
    for number, path in enumerate(table.paths(), start=1):
        if not path:
            refused = Reject(f"row {number}", NO_PATH, f"row {number} of the table has no path")
            yield Image(refused.key, f"{uri}#{number}", -1, storage, refused)
            continue
        at = source.place(path)
        refused_here = None
        if at.startswith(("http://", "https://")):
            refused_here = Reject(key_of(path), UNREADABLE, "a web address, and tables name files and s3:// objects")
        elif table.is_in_bucket and not at.startswith("s3://"):
            refused_here = Reject(key_of(path), UNREADABLE, "a path on a local disk, in a table that lies in a bucket")
        yield Image(key_of(path), at, -1, storage, refused_here)


def _missing(written: str, place: str, storage: StorageConfig) -> Image:
    refused = Reject(_shown(written), MISSING, "there is no such file, nor a folder with files")
    return Image(refused.key, place, -1, storage, refused)


def _local(place: str) -> Path:
    """The path of a place on this machine. Raises DatasetError for an unsupported scheme."""
    scheme, is_address, _ = place.partition("://")
    if not is_address:
        return path_here(place).absolute()
    if scheme != "file":
        raise DatasetError(
            f"Images are asked for at {scheme}://, which is not read.",
            advice="Give paths or s3:// addresses; fetch images from the web first.",
        )
    return Path(unquote(urlsplit(place).path))


def _shown(place: str) -> str:
    """A place as written; if it has unprintable characters, they are escaped."""
    return place if place.isprintable() else key_of(place)
