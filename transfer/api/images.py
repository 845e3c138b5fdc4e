"""Images as a Python program has them, read and checked as an ingest does, in batches for a model."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from PIL import ImageOps
from PIL.Image import Image as PillowImage
from PIL.Image import fromarray

from transfer.config import DatasetConfig, ImageInput, StorageConfig
from transfer.errors import DatasetError

Image = str | os.PathLike[str] | bytes | np.ndarray | PillowImage
"""A path, an `s3://` address, the bytes of a file, an image of Pillow, or pixels: uint8 [height, width, 3], RGB."""
_KINDS = (str, os.PathLike, bytes, np.ndarray, PillowImage)
Batch = tuple[list[bytes], np.ndarray]
"""Encoded images, and the same decoded: float32 [n, size, size, 3] in 0..255."""

BATCH_SIZE = 32


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one image."""

    image: str
    """Its path or address, or its place among those that were asked about: `#0`."""
    label: str
    """The most probable class."""
    probability: float
    """Of that class, 0 to 1."""
    probabilities: dict[str, float] = field(repr=False)
    """Of each class; their sum is 1."""


def predictions(
    images: Image | Sequence[Image],
    *,
    classes: Sequence[str],
    image_input: ImageInput,
    limits: DatasetConfig,
    storage: StorageConfig,
    answer: Callable[[Iterator[Batch]], Iterable[np.ndarray]],
) -> list[Prediction]:
    """Answer images in their order; a folder or prefix stands for the images in it.

    `classes`: names by index. `image_input`: what the network takes. `limits`: what an image may be,
    and its background. `storage`: how a bucket is reached. `answer`: from batches to probabilities float32
    [n, classes]. Raises DatasetError for the first image that cannot be answered, and StorageError.
    """
    given = list(images) if isinstance(images, Iterable) and not isinstance(images, _KINDS) else [images]
    keys: list[str] = []

    def checked() -> Iterator[tuple[bytes, np.ndarray]]:
        for key, data in _encoded(given, storage, limits):
            keys.append(key)
            yield _decoded(key, data, image_input, limits)

    def batches() -> Iterator[Batch]:
        images = checked()
        while batch := list(islice(images, BATCH_SIZE)):
            yield [data for data, _ in batch], np.stack([pixels for _, pixels in batch])

    rows = (row for probabilities in answer(batches()) for row in probabilities)
    return [_prediction(keys[index], row, classes) for index, row in enumerate(rows)]


def _prediction(key: str, row: np.ndarray, classes: Sequence[str]) -> Prediction:
    best = int(np.argmax(row))
    by_class = dict(zip(classes, row.tolist(), strict=True))
    return Prediction(key, classes[best], float(row[best]), by_class)


def _encoded(images: Sequence[Image], storage: StorageConfig, limits: DatasetConfig) -> Iterator[tuple[str, bytes]]:
    from transfer.dataset.manifest import Reject
    from transfer.registry.images import find_images

    for index, image in enumerate(images):
        if isinstance(image, bytes):
            yield f"#{index}", image
        elif isinstance(image, np.ndarray):
            yield f"#{index}", _as_png(_from_pixels(image, f"#{index}"))
        elif isinstance(image, PillowImage):
            yield f"#{index}", _from_pillow(image, f"#{index}")
        elif isinstance(image, str | os.PathLike):
            for found in find_images([os.fspath(image)], storage, alone=len(images) == 1):
                data = found.read(max_size_bytes=limits.max_file_size_bytes)
                if isinstance(data, Reject):
                    raise _unanswered(found.key, data.reason, data.detail)
                yield found.key, data
        else:
            raise DatasetError(
                f"Image #{index} is a {type(image).__name__}.",
                advice="Give paths, bytes of files, images of Pillow, or pixels as arrays uint8 [height, width, 3].",
            )


def _decoded(key: str, data: bytes, image_input: ImageInput, limits: DatasetConfig) -> tuple[bytes, np.ndarray]:
    from transfer.dataset.batches import checked_and_decoded
    from transfer.dataset.refusals import RejectedImage

    # A program has the image in its hands already, in whatever format: what can be transcoded is.
    outcome = checked_and_decoded(
        data, key=key, image_input=image_input, limits=limits, transcode=True, background=limits.background
    )
    if isinstance(outcome, RejectedImage):
        raise _unanswered(key, outcome.reason, outcome.detail)
    return outcome


def _unanswered(key: str, reason: str, detail: str) -> DatasetError:
    return DatasetError(
        f"{key} cannot be answered ({reason}): {detail.rstrip('.')}.",
        advice="Leave it out; `transfer predict` lists such images with their reason and answers the others.",
    )


def _from_pixels(pixels: np.ndarray, key: str) -> PillowImage:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DatasetError(
            f"Image {key} is an array {pixels.dtype} {list(pixels.shape)}; expected uint8 [height, width, 3].",
            advice="Floats in 0..1: `(image * 255).round().astype('uint8')`; in 0..255: without `* 255`. Gray images: "
            "`np.stack([image] * 3, -1)`. Batches: `list(batch)`.",
        )
    return fromarray(pixels)


def _from_pillow(image: PillowImage, key: str) -> bytes:
    """An image upright, as files are read, in colors that a PNG has."""
    from transfer.dataset.pillow import is_deep

    upright = ImageOps.exif_transpose(image)
    has_alpha = "A" in upright.getbands() or "transparency" in upright.info
    try:
        # Pillow's conversion of 16 bits would clip to white.
        return _as_png(upright if is_deep(upright) else upright.convert("RGBA" if has_alpha else "RGB"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"Image {key} cannot be read: {error}.", advice="Give its file, or its pixels.") from error


def _as_png(image: PillowImage) -> bytes:
    """The very pixels as a file, which then goes the way of all files."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
