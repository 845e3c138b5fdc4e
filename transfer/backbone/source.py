"""What the readers of networks share: their result, and files that may lie in S3 or in an archive."""

from __future__ import annotations

import difflib
import random
import shutil
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transfer.backbone.preprocess import Preprocessing
from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.errors import BackboneError, ObjectNotFoundError
from transfer.storage import Store, open_store

INITIAL_WEIGHTS_SEED = 0

# Bounds on what one archive or S3 prefix may bring. The largest image networks are below 3 GB.
MAX_MODULE_BYTES = 8 * 1024**3
MAX_MODULE_FILES = 10_000


@dataclass(frozen=True)
class LoadedNetwork:
    """A network as it was read, before a tap is applied."""

    name: str
    network: Any
    """A functional `keras.Model` from one float32 image [batch, size, size, 3] to one output."""
    preprocessing: Preprocessing
    """Used when the configuration says `preprocessing: auto`."""


@contextmanager
def all_weights_or_none() -> Iterator[None]:
    """Raise UserWarning where Keras would go on with fresh weights for layers that a file does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Skipping nested container", category=UserWarning)
        yield


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Initialise what is built in the block alike in every process: each worker must start from the same base.

    Keras draws the seeds of its initialisers from Python's generator, which is left as it was.
    """
    state = random.getstate()
    random.seed(INITIAL_WEIGHTS_SEED)
    try:
        yield
    finally:
        random.setstate(state)


def is_s3(uri: str) -> bool:
    """Whether `uri` names something in a bucket."""
    return uri.startswith("s3://")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that look most like `name`, as the end of a piece of advice; empty when none does."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f" Nearest: {', '.join(by_lower[match] for match in close)}." if close else ""


def local_file(uri: str, *, directory: Path, storage: StorageConfig | None) -> Path:
    """A local path to the file at `uri`: the path itself, or a copy in `directory` of an `s3://` object.

    Raises BackboneError when there is no such file, StorageError when S3 cannot be read.
    """
    if not is_s3(uri):
        path = path_here(uri)
        if not path.is_file():
            raise BackboneError(
                f"There is no file {uri}, which base.model or base.weights names.",
                advice="Bring it back, or name another one. A relative path begins where you run the command.",
            )
        return path
    parent, _, name = uri.rpartition("/")
    target = directory / name
    _copy_object(parent, name, target, storage)
    return target


def local_folder(uri: str, *, directory: Path, storage: StorageConfig | None) -> Path:
    """A copy in `directory` of all objects under the `s3://` prefix `uri`, with their relative names.

    Raises BackboneError when nothing is there, when it is too much, or when a name leaves the prefix.
    """
    store = open_at(uri, storage)
    objects = list(store.list())
    if not objects:
        raise BackboneError(f"There is nothing under {uri}.", advice="Check the bucket and the prefix.")
    check_bounds(uri, files=len(objects), size_bytes=sum(item.size_bytes for item in objects))
    for item in objects:
        target = directory / _safe_relative(uri, item.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_object(uri, item.name, target, storage)
    return directory


def saved_model_in(folder: Path) -> Path | None:
    """The folder of the SavedModel that a folder is, or has a level down, as archives do; None where there is none."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for path in [folder, *inner] if (path / "saved_model.pb").is_file()), None)


def unpack_tar(archive: Path, *, directory: Path, shown_as: str) -> Path:
    """Unpack a `.tar.gz` of a module into `directory` and return it.

    Only plain files and folders inside the archive's own root are accepted, up to MAX_MODULE_FILES files and
    MAX_MODULE_BYTES. Raises BackboneError otherwise, and when the archive is damaged.
    """
    files = size_bytes = 0
    try:
        with tarfile.open(archive, mode="r:*") as tar:
            for member in tar:
                if not (member.isfile() or member.isdir()):
                    raise BackboneError(
                        f"{shown_as} holds {member.name!r}, which is neither a file nor a folder (a link or a device).",
                        advice="A module has only files and folders. Do not use archives that you do not trust.",
                    )
                _safe_relative(shown_as, member.name)
                files += 1
                size_bytes += member.size
                # Before extraction: the header announces the size, and tarfile reads no more than that.
                check_bounds(shown_as, files=files, size_bytes=size_bytes)
                tar.extract(member, directory, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BackboneError(
            f"{shown_as} is not a whole .tar.gz archive: {error}.", advice="Download or copy it again."
        ) from error
    return directory


def _safe_relative(where: str, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BackboneError(
            f"{where} holds {name!r}, a path that leads out of it.",
            advice="Do not use archives or folders that you do not trust.",
        )
    return path


def check_bounds(where: str, *, files: int, size_bytes: int) -> None:
    """Raise BackboneError for more than one SavedModel has."""
    if files > MAX_MODULE_FILES or size_bytes > MAX_MODULE_BYTES:
        raise BackboneError(
            f"{where} holds more than {MAX_MODULE_FILES:,} files or {MAX_MODULE_BYTES:,} bytes.",
            advice="Is it the folder of a single SavedModel?",
        )


def open_at(uri: str, storage: StorageConfig | None) -> Store:
    """The store at an `s3://` URI, reached as `storage` says."""
    where = {"endpoint_url": storage.endpoint_url, "region": storage.region} if storage else {}
    return open_store(StorageConfig(uri=uri, **where))


def _copy_object(uri: str, name: str, target: Path, storage: StorageConfig | None) -> None:
    try:
        with open_at(uri, storage).open(name) as remote, target.open("wb") as local:
            shutil.copyfileobj(remote, local, length=8 * 1024**2)
    except ObjectNotFoundError as error:
        raise BackboneError(f"There is no object {uri}/{name}.", advice="Check the bucket and the name.") from error
