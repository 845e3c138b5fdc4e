"""Prediction with published models."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from transfer.catalog.layout import VERSION_DESCRIPTION
from transfer.catalog.model import ModelVersion
from transfer.config import ImageInput
from transfer.dataset.check import op_text
from transfer.errors import RegistryError
from transfer.features.forward import CHECKED_ROWS, TOLERANCE, Forward, forward_of
from transfer.features.frozen import FEATURE_CODE_VERSION
from transfer.features.network import traced, with_constants
from transfer.registry.export import EMBEDDINGS, FITTED
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
        # A prediction job answers several parts at a time, in threads.
        self._preparing = threading.Lock()
        self._ways: dict[tuple[Engine, bool], Forward | None] = {}

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
        described: dict[str, Any] = json.loads((self._files / VERSION_DESCRIPTION).read_text(encoding="utf-8"))
        return described

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

    @property
    def embedding_size(self) -> int | None:
        """Number of features of an image; None if the version was exported without them."""
        signature = self._loaded.signatures.get(EMBEDDINGS)
        return None if signature is None else int(signature.structured_outputs[EMBEDDINGS].shape[-1])

    def answers(self, batches: Iterator[Batch], *, engine: Engine) -> Iterator[np.ndarray]:
        """Yield probabilities float32 [n, classes] for each batch, in order: the first outputs of `outputs`."""
        return (probabilities for probabilities, *_ in self.outputs(batches, engine=engine))

    def outputs(
        self, batches: Iterator[Batch], *, engine: Engine, embeddings: bool = False
    ) -> Iterator[list[np.ndarray]]:
        """Yield [probabilities], float32 [n, classes], for each batch, in order; batches are read a little ahead.

        The fast forward pass predicts from the decoded images. If a release with other decoding exported the model, or
        the signature for encoded images predicts something else for the first images, that signature predicts all.
        `embeddings`: yield [probabilities, embeddings], float32 [n, embedding_size]. May be called from several
        threads. Raises FeaturesError if `engine` is `openvino` and OpenVINO cannot be used, RegistryError if there are
        no embeddings.
        """
        first = list(islice(batches, 1))
        if not first:
            return
        forward = self._forward(*first[0], engine=engine, embeddings=embeddings)
        if forward is None:
            yield from ([self.answer(encoded)["probabilities"]] for encoded, _ in chain(first, batches))
            return
        yield from forward.map(pixels for _, pixels in chain(first, batches))

    def _forward(self, encoded: list[bytes], pixels: np.ndarray, *, engine: Engine, embeddings: bool) -> Forward | None:
        """The fast forward pass, checked on a batch; None if the signature for encoded images must predict."""
        with self._preparing:
            if (engine, embeddings) not in self._ways:
                forward = None
                if self._decodes_alike(encoded, pixels):
                    forward = forward_of(FittedWork(self, embeddings=embeddings), engine=engine)
                    # The first rows decide which engine runs.
                    next(forward.map([pixels[:CHECKED_ROWS]]))
                elif embeddings:
                    raise RegistryError(
                        f"{self.subject} decodes images otherwise than this release, and has embeddings only of images "
                        "that are decoded already.",
                        advice="Publish its run again with this release: `transfer publish --again`.",
                    )
                self._ways[engine, embeddings] = forward
            return self._ways[engine, embeddings]

    def of_fitted(self, images: tf.Tensor, *, embeddings: bool = False) -> list[tf.Tensor]:
        """[probabilities] of fitted images, and [embeddings] if these are asked for, by one signature."""
        signatures = self._loaded.signatures
        if embeddings:
            answer = signatures[EMBEDDINGS](images=images)
            return [answer["probabilities"], answer[EMBEDDINGS]]
        # A model of an earlier release has no signature for them. It stretches images, which changes no fitted one.
        return [signatures[FITTED if FITTED in signatures else "pixels"](images=images)["probabilities"]]

    def _decodes_alike(self, encoded: list[bytes], pixels: np.ndarray) -> bool:
        """Whether this release decodes and resizes images as the release that exported the model."""
        if self._description.get("decoding", FEATURE_CODE_VERSION) != FEATURE_CODE_VERSION:
            return False
        by_signature = self.answer(encoded[:CHECKED_ROWS])["probabilities"]
        (by_pixels,) = self.of_fitted(tf.constant(pixels[:CHECKED_ROWS]))
        difference = float(np.max(np.abs(by_signature - by_pixels.numpy())))
        # In this form of the comparison, NaN counts as a difference.
        if difference <= TOLERANCE:
            return True
        logger.warning(
            "%s answers otherwise for images that are decoded here (by %.1e): its own decoder is used.",
            self.subject,
            difference,
        )
        return False


class FittedWork:
    """What a published model answers about fitted images, as work for a forward pass (`features/forward.py`)."""

    def __init__(self, model: PublishedModel, *, embeddings: bool = False) -> None:
        self.subject, self.advice = model.subject, model.advice
        self.row_shape = model.image_input.shape
        self._model, self._embeddings = model, embeddings

    def trace(self) -> Any:
        """The network as a traced function without variables, from fitted images to `of_fitted`."""
        images = tf.TensorSpec([None, *self.row_shape], tf.float32)
        return with_constants(traced(lambda rows: self._model.of_fitted(rows, embeddings=self._embeddings), images))

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """What the signature itself answers."""
        return [output.numpy() for output in self._model.of_fitted(tf.constant(rows), embeddings=self._embeddings)]


def probabilities_of(model: Answers, encoded: Iterable[bytes]) -> np.ndarray:
    """Probabilities float32 [n, classes] of n encoded images, one or more, by a published model itself."""
    images = iter(encoded)
    batches = iter(lambda: list(islice(images, BATCH_SIZE)), [])
    return np.concatenate([np.asarray(model(batch)["probabilities"], np.float32) for batch in batches])
