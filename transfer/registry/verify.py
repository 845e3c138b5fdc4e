"""Published versions on this machine's disk, and whether they are intact and can be served.

What publishing proves of a new version, this asks of those that there are: also of versions that an earlier release of
this project exported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.errors import CorruptObjectError, ObjectNotFoundError, RegistryError
from transfer.registry.versions import download_version, list_versions, load_version
from transfer.runtime.startup import import_tensorflow
from transfer.storage import Store, sha256_of_file


def fetch_version(store: Store, version: ModelVersion, to: Path, *, promotion: int | None = None) -> Path:
    """Copy a version's files, each verified, into a folder in `to`, and return that folder.

    Its name is the number of the `promotion` by which the version serves, so that a rollback is a higher one; without
    that `version-<number>`, which no server takes for something to serve.

    It appears whole or not at all, so a server may watch `to`. Where it is there already, nothing is copied. Raises
    CorruptObjectError for a wrong byte in storage, RegistryError when the folder is there with other content.
    """
    target = to / (f"version-{version.number}" if promotion is None else str(promotion))
    if target.exists():
        _check_same(version, target)
        return target
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(
            f"The folder {to} cannot be made: {error.strerror}.", advice="Name another one with --to."
        ) from error
    # In the same folder, so that it can be renamed; the name is no number, so that no server takes it for a version.
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{version.number}-") as folder:
        downloaded = download_version(store, version, Path(folder) / "model")
        try:
            downloaded.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Somebody else fetched it meanwhile.
            _check_same(version, target)
    return target


def higher_number(folder: Path) -> int | None:
    """The highest number beside a fetched version's folder, if that is another one: TensorFlow Serving serves it."""
    numbers = [int(path.name) for path in folder.parent.iterdir() if path.is_dir() and path.name.isdigit()]
    return max((number for number in numbers if number > int(folder.name)), default=None)


def _check_same(version: ModelVersion, folder: Path) -> None:
    for file in version.files:
        path = folder / file.name
        if not path.is_file() or sha256_of_file(path) != file.sha256:
            raise RegistryError(
                f"{folder} is there already and is not version {version.number} of model `{version.model}`: "
                f"{file.name} is {'another file' if path.is_file() else 'missing'}.",
                advice="Remove that folder, or name another one with --to.",
            )


TOLERANCE = 1e-4
"""Largest difference in a probability between two loaders; half precision rounds alike in all of them."""


def problems_of_versions(store: Store, model: str, number: int | None = None) -> Iterator[tuple[ModelVersion, str]]:
    """Each version, or the one with that number, and what is wrong with it: empty when nothing is.

    This process sees no GPU from then on. Raises RegistryError when there is no such version, StorageError when storage
    cannot be read, OutOfMemoryError.
    """
    import_tensorflow()
    import tensorflow as tf

    # Two loaders may choose another algorithm of a GPU, and would differ without anything being wrong.
    tf.config.set_visible_devices([], "GPU")
    versions = list_versions(store, model) if number is None else [load_version(store, model, number)]
    for version in versions:
        yield version, _problem(store, version)


def _problem(store: Store, version: ModelVersion) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            model = download_version(store, version, Path(folder))
        except (CorruptObjectError, ObjectNotFoundError) as error:
            return error.message
        return _problem_of_model(model, classes=len(version.classes))


def _problem_of_model(folder: Path, *, classes: int) -> str:
    """Ask a SavedModel for two images by every loader; the answers must be probabilities, and agree."""
    from transfer.registry.proof import LOADERS

    first: np.ndarray | None = None
    for loader in LOADERS:
        answers = loader.answers(folder, [_two_images()])
        if isinstance(answers, str):
            return f"It does not answer, asked by {loader.name}: {answers}"
        first = answers if first is None else first
        if answers.shape != (2, classes) or not np.allclose(answers.sum(axis=1), 1.0, atol=1e-3):
            return f"Asked by {loader.name}, it does not answer with probabilities of its {classes} classes."
        if not np.allclose(answers, first, rtol=0.0, atol=TOLERANCE):
            return f"Asked by {loader.name}, it answers differently by {np.abs(answers - first).max():.3g}."
    return ""


def _two_images() -> list[bytes]:
    """A gray picture and one of noise, as PNG."""
    import tensorflow as tf

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return [bytes(tf.io.encode_png(image).numpy()) for image in (np.full_like(noise, 128), noise)]
