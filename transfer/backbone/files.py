"""Common code of the readers of networks: their result, and files in S3 or in archives."""

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
        """Preprocess images; returns float32 of the same shape."""
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
CONFIG_OF_PRESET = "config.json"
"""The file that tells a folder of keras-hub from that of a SavedModel."""

# Limits of one archive or S3 prefix. The largest image networks are below 3 GB.
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
    """A functional `keras.Model` from one float32 image [batch, height, width, channels] to one output."""
    preprocessing: Preprocessing
    """Used when the configuration says `preprocessing: auto`."""
    is_features: bool = False
    """Whether it is known to answer features, and no classes of its own."""
    patches: int | None = None
    """Parts of the image for each of which there is one token, where it answers tokens; None: unknown."""


@contextmanager
def all_weights_or_none() -> Iterator[None]:
    """Raise ValueError, with the first mismatch, unless the file that the block loads has the weights of all layers.

    For missing weights of nested layers Keras only warns, and leaves them at their initial values.
    """
    with warnings.catch_warnings(record=True) as caught:
        # Not raised at once: for a file of another network, Keras says later which layers do not fit.
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
    """The first mismatch in Keras's message about a file of weights, which can take a page."""
    found = _UNFIT_LAYERS.match(said)
    if found is None:
        return said
    count, layer, reason = found.groups()
    name = re.search(r"name=([^,>]+)", layer)
    return f"{count} of its layers do not fit, such as `{name.group(1) if name else layer}`: {reason}"


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Give layers that are built in the block the same initial weights in every process, so that workers agree.

    Keras draws the seeds of its initialisers from Python's generator, whose state is restored afterwards.
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
    """The known names most similar to `name`, as the end of an advice; empty if none is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    return f" Nearest: {', '.join(by_lower[match] for match in close)}." if close else ""


def local_file(uri: str, *, directory: Path, storage: StorageConfig | None) -> Path:
    """A local path to the file at `uri`: the path itself, or a copy in `directory` of an `s3://` object.

    Raises BackboneError if there is no such file, StorageError if S3 cannot be read.
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
    """Copy all objects under the `s3://` prefix `uri` into `directory`, with their relative names.

    Raises BackboneError if there are none, if they are too many or too large, or if a name leads out of the prefix.
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
    """The folder of the SavedModel: the folder itself or, as in archives, one a level down; None if there is none."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for path in [folder, *inner] if (path / "saved_model.pb").is_file()), None)


def is_preset(uri: str, storage: StorageConfig | None) -> bool:
    """Whether a folder or an `s3://` prefix is a preset of keras-hub. Raises StorageError from S3."""
    if is_s3(uri):
        return not uri.endswith((".tar.gz", ".tgz")) and open_at(uri, storage).exists(CONFIG_OF_PRESET)
    return "://" not in uri and (path_here(uri) / CONFIG_OF_PRESET).is_file()


def unpack_tar(archive: Path, *, directory: Path, shown_as: str) -> Path:
    """Unpack a `.tar.gz` of a module into the empty `directory` and return it.

    Only plain files and folders inside the root of the archive are accepted, up to MAX_MODULE_FILES files and
    MAX_MODULE_BYTES. Raises BackboneError otherwise, and if the archive is damaged.
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
    """Raise BackboneError for more files or bytes than a SavedModel may have."""
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
