"""A published model that is loaded and asked: by its signature, as a server would, or by the fastest way here."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from transfer.activations.forward import CHECKED_ROWS, TOLERANCE, forward_of
from transfer.activations.prefix import FEATURE_CODE_VERSION
from transfer.activations.tracing import traced, with_constants
from transfer.memory import FOR_PREDICTION, memory_explained
from transfer.registry.versions import ModelVersion, download_version
from transfer.storage import Store

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
Answers = Callable[[list[bytes]], dict[str, Any]]
"""What a published model answers for encoded images."""
Batch = tuple[list[bytes], np.ndarray]
"""Encoded images, and the same decoded: float32 [n, image_size, image_size, 3] in 0..255."""
Engine = Literal["auto", "tensorflow", "openvino"]


def load_answers(store: Store, version: ModelVersion, folder: Path) -> Answers:
    """Load a published version: a function from n encoded images to its answers.

    They are `probabilities` float32 [n, classes], `class_index` int32 [n] and `class_name` bytes [n]. `folder`: where
    its files are put. Raises CorruptObjectError for a wrong byte, RegistryError when the version is removed meanwhile,
    OutOfMemoryError, as the answers do.
    """
    return PublishedModel(version, download_version(store, version, folder)).answer


class PublishedModel:
    """A version whose files are on this machine. Raises OutOfMemoryError, as its answers do."""

    def __init__(self, version: ModelVersion, files: Path) -> None:
        self.classes = version.classes
        self.subject, self.advice = f"Version {version.number} of {version.model}", FOR_PREDICTION
        self.name: tuple[object, ...] = (version.model, version.number)
        with memory_explained(self.subject, advice=self.advice):
            # Kept, for the variables of its signatures live as long as it does.
            self._loaded = tf.saved_model.load(str(files))
        self._files = files

    @cached_property
    def image_size(self) -> int:
        """Height and width of the images that the network takes."""
        return int(self._description["image_size"])

    @cached_property
    def _description(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads((self._files / "assets.extra/transfer.json").read_text(encoding="utf-8"))
        return described

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a decoded image."""
        return (self.image_size, self.image_size, 3)

    def answer(self, encoded: list[bytes]) -> dict[str, Any]:
        """What the signature for encoded images answers."""
        work = f"{self.subject}, asked about at most {BATCH_SIZE} images at a time,"
        with memory_explained(work, advice=self.advice):
            answers = self._loaded.signatures["serving_default"](image_bytes=tf.constant(encoded))
            return {name: value.numpy() for name, value in answers.items()}

    def answers(self, batches: Iterator[Batch], *, engine: Engine) -> Iterator[np.ndarray]:
        """Probabilities float32 [n, classes] for each batch, in order; batches are read a little ahead.

        The network runs as fast as this machine can, on images that this project decoded. Where the model was exported
        by a release that decodes otherwise, or the signature gives something else for the first images, all are
        answered by the signature. Raises ActivationsError when OpenVINO was asked for by name and cannot be used.
        """
        first = list(islice(batches, 1))
        if not first or not self._decodes_alike(*first[0]):
            yield from (self.answer(encoded)["probabilities"] for encoded, _ in chain(first, batches))
            return
        forward = forward_of(self, engine=engine)
        for (probabilities,) in forward.map(pixels for _, pixels in chain(first, batches)):
            yield probabilities

    def trace(self) -> Any:
        """The network as a function without variables, for decoded images: to [probabilities]."""
        images = tf.TensorSpec([None, *self.row_shape], tf.float32)
        return with_constants(traced(lambda rows: [self._of_pixels(rows)], images))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """What the signature for decoded images answers."""
        return [self._of_pixels(tf.constant(rows)).numpy()]

    def _of_pixels(self, images: tf.Tensor) -> tf.Tensor:
        return self._loaded.signatures["pixels"](images=images)["probabilities"]

    def _decodes_alike(self, encoded: list[bytes], pixels: np.ndarray) -> bool:
        """Whether this release decodes and resizes images as the one that exported the model did."""
        if self._description.get("decoding", FEATURE_CODE_VERSION) != FEATURE_CODE_VERSION:
            return False
        by_signature = self.answer(encoded[:CHECKED_ROWS])["probabilities"]
        (by_pixels,) = self.plain(pixels[:CHECKED_ROWS])
        difference = float(np.max(np.abs(by_signature - by_pixels)))
        # Written so that NaN is no agreement.
        if difference <= TOLERANCE:
            return True
        logger.warning(
            "%s answers otherwise for images that are decoded here (by %.1e): its own decoder is used.",
            self.subject,
            difference,
        )
        return False
