"""Verification that published versions are intact and can be served.

Publishing proves this for a new version only; here it is checked for existing versions, also those that an earlier
release exported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from transfer.catalog.model import ModelVersion
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.registry.versions import download_version, list_versions, load_version
from transfer.runtime.startup import import_tensorflow
from transfer.storage import Store

TOLERANCE = 1e-4
"""Largest difference in a probability between two loaders; also for half precision, which all loaders round alike."""


def problems_of_versions(store: Store, model: str, number: int | None = None) -> Iterator[tuple[ModelVersion, str]]:
    """Verify all versions of a model, or version `number`. Yields each with its problem, empty if there is none.

    This process sees no GPU afterwards. Raises RegistryError if the version does not exist, StorageError if storage
    cannot be read, OutOfMemoryError.
    """
    import_tensorflow()
    import tensorflow as tf

    # On a GPU two loaders may choose different algorithms, and would differ although nothing is wrong.
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
    """Predict two images with every loader. Returns the problem unless all return probabilities that agree."""
    from transfer.registry.export_proof import LOADERS

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
    """A gray image and a noise image, as PNG."""
    import tensorflow as tf

    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return [bytes(tf.io.encode_png(image).numpy()) for image in (np.full_like(noise, 128), noise)]
