"""Images in a Python program: paths, bytes, arrays or Pillow images, checked as in ingest, in batches for a model."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageOps
from PIL.Image import Image as PillowImage
from PIL.Image import fromarray

from transfer.config import DatasetConfig, ImageInput, StorageConfig
from transfer.errors import DatasetError

if TYPE_CHECKING:
    from transfer.dataset.manifest import Reject
    from transfer.registry.answered_images import ReadableImage
    from transfer.registry.published_model import Batch

Image = str | os.PathLike[str] | bytes | np.ndarray | PillowImage
"""A path, an `s3://` address, the bytes of a file, an image of Pillow, or pixels: uint8 [height, width, 3], RGB."""
_KINDS = (str, os.PathLike, bytes, np.ndarray, PillowImage)


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Example:
        >>> prediction = transfer.load_model("flowers").predict("photo.jpg")[0]
        >>> prediction.image
        'photo.jpg'
        >>> prediction.probability == prediction.probabilities[prediction.label]
        True
    """

    image: str
    """Path or address of the image. For bytes, arrays and Pillow images: the position in the call, `#0`."""
    label: str | None
    """Name of the most probable class; None for an image that cannot be read."""
    probability: float | None
    """Probability of that class, 0 to 1; None for an image that cannot be read."""
    probabilities: dict[str, float] = field(repr=False)
    """Probability of each class by name, 0 to 1; their sum is 1. Empty for an image that cannot be read."""
    error: str | None = None
    """Why the image cannot be read: `corrupt: …`."""


def predictions(
    images: Image | Sequence[Image],
    *,
    classes: Sequence[str],
    image_input: ImageInput,
    limits: DatasetConfig,
    storage: StorageConfig,
    answer: Callable[[Iterator[Batch]], Iterable[np.ndarray]],
) -> list[Prediction]:
    """Predict images in their order. A folder or prefix stands for the images in it.

    Args:
        images: One image or a sequence of images, of the kinds in `Image`.
        classes: Sequence of strings. Names of the classes, by index.
        image_input: The images that the network takes.
        limits: The section `dataset`. Its limits of file size and pixels hold for each image; its background is put
            under transparent pixels.
        storage: The section `storage`, with which `s3://` addresses are read.
        answer: Function from an iterator of batches to probabilities float32 [n, classes] of each batch.

    Returns:
        One Prediction for each image, in order. That of an image in a sequence or folder that cannot be read or decoded
        has an `error`.

    Raises:
        DatasetError: An image that is given alone cannot be read or decoded, or something given is no image: an array
            of another type or shape, an address of the web.
        StorageError: A bucket cannot be read.
    """
    from transfer.dataset.batches import checked_and_decoded
    from transfer.dataset.manifest import Reject
    from transfer.registry.answered_images import answered_images

    given = list(images) if isinstance(images, Iterable) and not isinstance(images, _KINDS) else [images]
    encoded = _encoded(given, storage, limits, must_exist=isinstance(images, _KINDS))
    prepare = partial(checked_and_decoded, image_input=image_input, limits=limits)
    batches = answered_images(encoded, prepare=prepare, answer=answer)
    answers = [answered for batch in batches for answered in batch]
    for key, answered in answers:
        if isinstance(answered, Reject) and _is_alone(key, images):
            raise _unanswered(answered)
    return [_prediction(key, answered, classes) for key, answered in answers]


def _prediction(key: str, answered: np.ndarray | Reject, classes: Sequence[str]) -> Prediction:
    if not isinstance(answered, np.ndarray):
        return Prediction(key, None, None, {}, f"{answered.reason}: {answered.detail}")
    best = int(np.argmax(answered))
    by_class = dict(zip(classes, answered.tolist(), strict=True))
    return Prediction(key, classes[best], float(answered[best]), by_class)


def _is_alone(key: str, images: object) -> bool:
    """Whether an image of this key is all that was asked about, not one of a list's or a folder's."""
    if isinstance(images, str | os.PathLike):
        return key == os.fspath(images)
    return isinstance(images, _KINDS)


def _encoded(
    images: Sequence[Image], storage: StorageConfig, limits: DatasetConfig, *, must_exist: bool
) -> Iterator[ReadableImage]:
    from transfer.registry.images import find_images

    for index, image in enumerate(images):
        if isinstance(image, bytes):
            yield f"#{index}", _held(image)
        elif isinstance(image, np.ndarray):
            yield f"#{index}", _held(_as_png(_from_pixels(image, f"#{index}")))
        elif isinstance(image, PillowImage):
            yield f"#{index}", _held(_from_pillow(image, f"#{index}"))
        elif isinstance(image, str | os.PathLike):
            place = os.fspath(image)
            for found in find_images([place], storage, alone=len(images) == 1, must_exist=must_exist):
                yield found.key, partial(found.read, max_size_bytes=limits.max_file_size_bytes)
        else:
            raise DatasetError(
                f"Image #{index} is a {type(image).__name__}.",
                advice="Give paths, bytes of files, images of Pillow, or pixels as arrays uint8 [height, width, 3].",
            )


def _held(data: bytes | Reject) -> Callable[[], bytes | Reject]:
    """How an image is read that this program holds: at once, because an object of Pillow is for one thread."""
    return lambda: data


def _unanswered(refused: Reject) -> DatasetError:
    return DatasetError(
        f"{refused.key} cannot be answered ({refused.reason}): {refused.detail.rstrip('.')}.",
        advice="Give another one. In a list or a folder such an image is a prediction with its `error`.",
    )


def _from_pixels(pixels: np.ndarray, key: str) -> PillowImage:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DatasetError(
            f"Image {key} is an array {pixels.dtype} {list(pixels.shape)}; expected uint8 [height, width, 3].",
            advice="Floats in 0..1: `(image * 255).round().astype('uint8')`; in 0..255: without `* 255`. Gray images: "
            "`np.stack([image] * 3, -1)`. Batches: `list(batch)`.",
        )
    return fromarray(pixels)


def _from_pillow(image: PillowImage, key: str) -> bytes | Reject:
    """Encode an image as PNG: upright by its EXIF orientation, as files are read, and in RGB or RGBA."""
    from transfer.dataset.manifest import Reject
    from transfer.dataset.pillow import is_deep
    from transfer.dataset.refusals import RejectReason

    try:
        # Pillow reads an opened file only now.
        upright = ImageOps.exif_transpose(image)
        if upright.mode in {"I", "F"}:
            detail = f"pixels of 32 bits (mode {upright.mode}), and nothing says which value is white: give 16 bits, "
            detail += "`Image.fromarray(np.asarray(image).astype('uint16'))`"
            return Reject(key, RejectReason.UNSUPPORTED_FORMAT, detail)
        has_alpha = "A" in upright.getbands() or "transparency" in upright.info
        # Pillow's conversion of 16 bits would clip to white.
        return _as_png(upright if is_deep(upright) else upright.convert("RGBA" if has_alpha else "RGB"))
    except (OSError, ValueError) as error:
        return Reject(key, RejectReason.CORRUPT, str(error))


def _as_png(image: PillowImage) -> bytes:
    """Encode the same pixels losslessly, so that they are checked and decoded like any file."""
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=1)
    return buffer.getvalue()
