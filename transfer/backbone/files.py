"""What the readers of networks share: their result, and files that may lie in S3 or in an archive."""

from __future__ import annotations

import difflib
import random
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.dataset.sources.archive import Bounds, RefusedArchiveError, unpack_members
from transfer.errors import BackboneError, ObjectNotFoundError
from transfer.storage import Store, open_store


@dataclass(frozen=True)
class Preprocessing:
    """A named function on float32 pixels [batch, height, width, 3] in 0..255, RGB.

    It is made of plain TensorFlow operations, so it works eagerly, in `tf.function`, in `tf.data` and in an export.
    """

    name: str
    function: Callable[[Any], Any] = field(compare=False)

    def __call__(self, images: Any) -> Any:
        """The images as the network expects them, float32 of the same shape."""
        return self.function(images)


def _unchanged(images: Any) -> Any:
    return images


def _to_unit(images: Any) -> Any:
    return images / 255.0


def _to_signed_unit(images: Any) -> Any:
    return images / 127.5 - 1.0


# By the configuration's `base.preprocessing`.
RANGES = {
    "0..255": Preprocessing("0..255", _unchanged),
    "0..1": Preprocessing("0..1", _to_unit),
    "-1..1": Preprocessing("-1..1", _to_signed_unit),
}


INITIAL_WEIGHTS_SEED = 0
HDF5_SUFFIXES = (".h5", ".hdf5")

# Bounds on what one archive or S3 prefix may bring. The largest image networks are below 3 GB.
MAX_MODULE_BYTES = 8 * 1024**3
MAX_MODULE_FILES = 10_000


_FRESH_WEIGHTS = "Skipping nested container"
_UNFIT_LAYERS = re.compile(
    r"A total of (\d+) objects could not be loaded. Example error message for object (.+?):\n\n"
    r"(.+?)(?: Target variable:|\n|$)"
)


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
    """Raise ValueError, in a sentence that begins with what does not fit, unless a file has the weights of all layers.

    Where it has none for layers inside of others, Keras only warns, and goes on with fresh ones.
    """
    with warnings.catch_warnings(record=True) as caught:
        # Not raised at once: of a file of another network, Keras says later which layers do not fit.
        warnings.filterwarnings("always", message=_FRESH_WEIGHTS, category=UserWarning)
        try:
            yield
        except ValueError as error:
            raise ValueError(_what_does_not_fit(str(error))) from error
    for warning in caught:
        if str(warning.message).startswith(_FRESH_WEIGHTS):
            raise ValueError("it has no weights for some of the layers that are inside of others")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _what_does_not_fit(said: str) -> str:
    """What Keras said of a file of weights, which takes it a page where several layers do not fit."""
    found = _UNFIT_LAYERS.match(said)
    if found is None:
        return said
    count, layer, reason = found.groups()
    name = re.search(r"name=([^,>]+)", layer)
    return f"{count} of its layers do not fit, such as `{name.group(1) if name else layer}`: {reason}"


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
                advice="Bring it back, or name another one.",
            )
        return path
    parent, _, name = uri.rpartition("/")
    target = directory / name
    _copy_object(open_at(parent, storage), name, target)
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
        _copy_object(store, item.name, target)
    return directory


def saved_model_in(folder: Path) -> Path | None:
    """The folder of the SavedModel that a folder is, or has a level down, as archives do; None where there is none."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for path in [folder, *inner] if (path / "saved_model.pb").is_file()), None)


def unpack_tar(archive: Path, *, directory: Path, shown_as: str) -> Path:
    """Unpack a `.tar.gz` of a module into the empty `directory` and return it.

    Only plain files and folders inside the archive's own root are accepted, up to MAX_MODULE_FILES files and
    MAX_MODULE_BYTES. Raises BackboneError otherwise, and when the archive is damaged.
    """
    bounds = Bounds(MAX_MODULE_FILES, MAX_MODULE_BYTES, "a module may have", hard_links=False)
    try:
        unpack_members(archive, directory, bounds=bounds, is_zip=False)
    except RefusedArchiveError as error:
        raise BackboneError(
            f"The archive {shown_as} is refused: {error}.",
            advice="A module has only files and folders. Copy or download it again, from where you trust it.",
        ) from error
    except OSError as error:
        raise BackboneError(
            f"The archive {shown_as} could not be unpacked to {directory}: {error.strerror or error}.",
            advice="Check the free space there; TMPDIR chooses another folder.",
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


def _copy_object(store: Store, name: str, target: Path) -> None:
    try:
        store.download(name, target)
    except ObjectNotFoundError as error:
        raise BackboneError(
            f"There is no object {store.uri}/{name}.", advice="Check the bucket and the name."
        ) from error
