"""Prediction with published models."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from transfer.catalog.model import ModelVersion
from transfer.config import ImageInput
from transfer.dataset.check import op_text
from transfer.errors import RegistryError
from transfer.features.forward import CHECKED_ROWS, TOLERANCE, forward_of
from transfer.features.frozen import FEATURE_CODE_VERSION
from transfer.features.network import traced, with_constants
from transfer.registry.export import DESCRIPTION, FITTED
from transfer.registry.versions import download_version
from transfer.runtime.memory import FOR_PREDICTION, memory_explained
from transfer.storage import Store

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
Answers = Callable[[list[bytes]], dict[str, Any]]
"""From encoded images to the outputs of a published model, by name."""
Batch = tuple[list[bytes], np.ndarray]
"""n encoded images, and the same images decoded: float32 [n, height, width, 3] in 0..255."""
Engine = Literal["auto", "tensorflow", "openvino"]


def load_answers(store: Store, version: ModelVersion, folder: Path) -> Answers:
    """Load a published version as a function of n encoded images.

    The function returns `probabilities` float32 [n, classes], `class_index` int32 [n] and `class_name` bytes [n].
    `folder`: destination of the version's files. Raises CorruptObjectError for a wrong byte, RegistryError if the
    version is removed meanwhile, OutOfMemoryError. The function raises OutOfMemoryError, too, and RegistryError for an
    image that the version does not decode.
    """
    return PublishedModel(version, download_version(store, version, folder)).answer


class PublishedModel:
    """A loaded version, from files on this machine. Loading and prediction raise OutOfMemoryError."""

    def __init__(self, version: ModelVersion, files: Path) -> None:
        self.classes = version.classes
        self.subject, self.advice = f"Version {version.number} of {version.model}", FOR_PREDICTION
        with memory_explained(self.subject, advice=self.advice):
            # Held, because the variables of its signatures live only as long as this object.
            self._loaded = tf.saved_model.load(str(files))
        self._files = files

    @cached_property
    def image_input(self) -> ImageInput:
        """Size, fit and resizing of the network's input images."""
        described = self._description
        # An earlier release stretched each image to a square, and stored its side.
        side = described.get("image_size")
        return ImageInput(side, side) if side else ImageInput(**described["image_input"])

    @property
    def background(self) -> str | None:
        """Color behind transparent pixels, `#rrggbb`; None if the model drops the alpha channel."""
        background: str | None = self._description.get("background")
        return background

    @cached_property
    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self._files / DESCRIPTION).read_text(encoding="utf-8"))
        return described

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a decoded image."""
        return self.image_input.shape

    def answer(self, encoded: list[bytes]) -> dict[str, Any]:
        """Run the signature for encoded images. Returns its outputs by name."""
        work = f"{self.subject}, asked about at most {BATCH_SIZE} images at a time,"
        try:
            with memory_explained(work, advice=self.advice):
                answers = self._loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
                return {name: value.numpy() for name, value in answers.items()}
        except tf.errors.InvalidArgumentError as error:
            raise RegistryError(
                f"{self.subject} does not decode an image: {op_text(error)}.",
                advice="The dataset was made with another dataset.depth, or by another release, than the one that it "
                "was trained on. Promote a version that decodes such images with `transfer registry promote`.",
            ) from error

    def answers(self, batches: Iterator[Batch], *, engine: Engine) -> Iterator[np.ndarray]:
        """Yield probabilities float32 [n, classes] for each batch, in order; batches are read a little ahead.

        The fast forward pass predicts from the decoded images. If a release with other decoding exported the model, or
        the signature for encoded images predicts something else for the first images, that signature predicts all.
        Raises FeaturesError if `engine` is `openvino` and OpenVINO cannot be used.
        """
        first = list(islice(batches, 1))
        if not first or not self._decodes_alike(*first[0]):
            yield from (self.answer(encoded)["probabilities"] for encoded, _ in chain(first, batches))
            return
        forward = forward_of(self, engine=engine)
        for (probabilities,) in forward.map(pixels for _, pixels in chain(first, batches)):
            yield probabilities

    def trace(self) -> Any:
        """The network as a traced function without variables, from decoded images to [probabilities]."""
        images = tf.TensorSpec([None, *self.row_shape], tf.float32)
        return with_constants(traced(lambda rows: [self._of_fitted(rows)], images))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """Run the signature for fitted images, `rows`. Returns [probabilities]."""
        return [self._of_fitted(tf.constant(rows)).numpy()]

    def _of_fitted(self, images: tf.Tensor) -> tf.Tensor:
        signatures = self._loaded.signatures
        # A model of an earlier release has no signature for them. It stretches images, which changes no fitted one.
        return signatures[FITTED if FITTED in signatures else "pixels"](images=images)["probabilities"]

    def _decodes_alike(self, encoded: list[bytes], pixels: np.ndarray) -> bool:
        """Whether this release decodes and resizes images as the release that exported the model."""
        if self._description.get("decoding", FEATURE_CODE_VERSION) != FEATURE_CODE_VERSION:
            return False
        by_signature = self.answer(encoded[:CHECKED_ROWS])["probabilities"]
        (by_pixels,) = self.plain(pixels[:CHECKED_ROWS])
        difference = float(np.max(np.abs(by_signature - by_pixels)))
        # In this form of the comparison, NaN counts as a difference.
        if difference <= TOLERANCE:
            return True
        logger.warning(
            "%s answers otherwise for images that are decoded here (by %.1e): its own decoder is used.",
            self.subject,
            difference,
        )
        return False


def probabilities_of(model: Answers, encoded: Iterable[bytes]) -> np.ndarray:
    """Probabilities float32 [n, classes] of n encoded images, one or more, by a published model itself."""
    images = iter(encoded)
    batches = iter(lambda: list(islice(images, BATCH_SIZE)), [])
    return np.concatenate([np.asarray(model(batch)["probabilities"], np.float32) for batch in batches])
