"""The check of an image by its bytes, before it enters a dataset.

An accepted image was decoded here by the same function that training and serving use, so it cannot fail there.
docs/images.md says what happens to each format and each defect.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from importlib import import_module
from typing import Any

import numpy as np

from transfer.dataset import formats
from transfer.dataset.formats import Format
from transfer.runtime.startup import import_tensorflow

CHECK_VERSION = 4
"""Version of this check. It is raised when the check accepts, stores or describes images differently, so that results
of earlier ingests are not reused."""
# A progressive JPEG has about ten scans. Each costs a pass over all pixels, however few bytes it has.
_MAX_JPEG_SCANS = 100
# Pillow's messages for compressed texts and profiles beyond its limit.
_UNPACKS_TO_MUCH = "Decompressed data too large"
# Largest difference in 0..255. Pillow and TensorFlow convert CMYK slightly differently; inverted colors are far beyond.
_MAX_MEAN_DIFFERENCE_OF_JPEG = 8
# The other decoders agree exactly; versions of the WebP library may round differently one day.
_MAX_DIFFERENCE = 8
# Cameras and scanners of 12 bits may leave the upper 4 of 16 empty.
_BLACK_IN_8_BITS = 4096


class RejectReason(StrEnum):
    """Why an image was refused."""

    EMPTY = "empty"
    TOO_LARGE_FILE = "too_large_file"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    PIXEL_BOMB = "pixel_bomb"
    CORRUPT = "corrupt"


@dataclass(frozen=True)
class AcceptedImage:
    """An image that decodes: its bytes (PNG if transcoded), size in pixels as displayed (upright), and format."""

    data: bytes
    width: int
    height: int
    format: str


@dataclass(frozen=True)
class RejectedImage:
    """An image that was refused: the reason to count by, and a sentence on what was found."""

    reason: RejectReason
    detail: str


class _RefusedError(Exception):
    """The image is refused."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.rejected = RejectedImage(reason, detail)


class _UndecodableError(Exception):
    """TensorFlow cannot decode the image, or decodes it to other pixels than Pillow does."""


def check_image(
    data: bytes,
    *,
    key: str,
    max_pixels: int,
    max_file_size_bytes: int,
    transcode: bool,
    background: str | None = None,
) -> AcceptedImage | RejectedImage:
    """Check one image file by decoding it; never raises because of what is in `data`.

    `key`: name of the file. The content alone decides; a name that promises another format is mentioned. Images with
    more than `max_pixels` pixels are refused by their header. With `transcode`, a file that TensorFlow does not decode
    correctly becomes an upright PNG of its first frame if Pillow can read it; the same bytes always give the same PNG.
    `background`, `#rrggbb`: an image with transparent pixels is put on this color and becomes a PNG, too.
    """
    if not data:
        return RejectedImage(RejectReason.EMPTY, "The file has no bytes.")
    if len(data) > max_file_size_bytes:
        detail = f"The file has {len(data):,} bytes; max_file_size_bytes is {max_file_size_bytes:,}."
        return RejectedImage(RejectReason.TOO_LARGE_FILE, detail)
    kind = formats.recognize(data)
    if kind is None:
        detail = f"The file starts with {data[:12]!r}, which no known image format does."
        return RejectedImage(RejectReason.NOT_AN_IMAGE, detail)
    try:
        # Pillow warns of what this function decides anyway, and would warn thousands of times.
        with _no_warnings():
            return _check(
                data, kind, kind.named(key), max_pixels=max_pixels, transcode=transcode, background=background
            )
    except _RefusedError as refused:
        return refused.rejected


def _check(
    data: bytes, kind: Format, label: str, *, max_pixels: int, transcode: bool, background: str | None
) -> AcceptedImage:
    if not kind.is_decodable and not transcode:
        # Recommend transcoding only if it would help.
        _refuse_pixels(data, kind, label)
        tool = f" (with {kind.package} installed)" if kind.package else ""
        raise _RefusedError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{label} is not decoded in a model's graph; `transcode: true` turns it into PNG{tool}.",
        )
    try:
        return _check_with_pillow(data, kind, label, max_pixels=max_pixels, transcode=transcode, background=background)
    except _RefusedError as refused:
        if kind not in {formats.JPEG, formats.PNG} or refused.rejected.reason != RejectReason.CORRUPT:
            raise
        return _decoded_alone(data, kind, refused, max_pixels=max_pixels, background=background)


def _check_with_pillow(
    data: bytes, kind: Format, label: str, *, max_pixels: int, transcode: bool, background: str | None
) -> AcceptedImage:
    image = _open(data, kind, label)
    _limit_pixels(image.width, image.height, max_pixels)
    if kind.is_decodable:
        try:
            height, width = _decode_as_pillow(data, kind, image, label, max_pixels=max_pixels)
            if background is not None and kind.has_alpha and image.has_transparency_data:
                return _accepted(_decode(data, background))
            return AcceptedImage(data, width, height, kind.name)
        except _UndecodableError as problem:
            _load(image, label)
            if not transcode:
                raise _RefusedError(
                    RejectReason.UNSUPPORTED_FORMAT,
                    f"{label} that TensorFlow does not decode right: {problem}. `transcode: true` turns it into PNG.",
                ) from None
    upright = _without_metadata(image, data, label, keeps_alpha=background is not None)
    try:
        return _accepted(_decode(_to_png(upright), background))
    except _UndecodableError as problem:
        detail = f"{label} that TensorFlow does not decode even as PNG: {problem}."
        raise _RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None


def _decoded_alone(
    data: bytes, kind: Format, refused: _RefusedError, *, max_pixels: int, background: str | None
) -> AcceptedImage:
    """Accept a JPEG or PNG that TensorFlow decodes although Pillow finds it corrupt: the damage is outside the pixels.

    Raises `refused` if TensorFlow cannot decode it either, or if a compressed text in it is too large.
    """
    if _UNPACKS_TO_MUCH in refused.rejected.detail:
        raise refused
    try:
        height, width = formats.png_size(data) if kind is formats.PNG else _jpeg_size(data)
        _limit_pixels(width, height, max_pixels)
        _limit_scans(data, kind, kind.name)
        on_color = background if kind.has_alpha else None
        pixels = _decode(data, on_color)
    except _UndecodableError:
        raise refused from None
    if on_color is not None:
        return _accepted(pixels)
    return AcceptedImage(data, pixels.shape[1], pixels.shape[0], kind.name)


def _accepted(pixels: np.ndarray) -> AcceptedImage:
    """Encode pixels, uint8 [height, width, 3], as PNG."""
    from PIL import Image

    height, width, _ = pixels.shape
    return AcceptedImage(_to_png(Image.fromarray(pixels)), width, height, formats.PNG.name)


def _decode_as_pillow(data: bytes, kind: Format, image: Any, label: str, *, max_pixels: int) -> tuple[int, int]:
    """Decode with TensorFlow and compare with Pillow's pixels. Returns height and width in pixels.

    TensorFlow allocates as many pixels as the header says, which Pillow has read before; for BMP at most as many as the
    file has bytes. Only frames of a GIF can be larger than its header says.
    """
    _limit_scans(data, kind, label)
    if kind is formats.GIF:
        _limit_gif_frames(data, image.size, max_pixels)
    # JPEG, the most frequent format, can be read in one way only, except CMYK. So Pillow need not decode it, too.
    is_compared = kind is not formats.JPEG or image.mode not in {"RGB", "L"}
    if is_compared:
        _load(image, label)
    pixels = _decode(data)
    if is_compared:
        _compare(pixels, image, kind)
    return pixels.shape[0], pixels.shape[1]


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, kind: Format, label: str) -> Any:
    """Read the header with Pillow, lazily: no pixel is decoded."""
    from PIL import Image, UnidentifiedImageError

    if kind.plugin:
        with suppress(ImportError):
            import_module(kind.plugin)
    Image.init()
    if kind.pillow_name not in Image.OPEN:
        advice = f"install {kind.package}" if kind.package else "this build of Pillow does not read it"
        raise _RefusedError(RejectReason.UNSUPPORTED_FORMAT, f"{label} cannot be turned into PNG here: {advice}.")
    try:
        return Image.open(io.BytesIO(data), formats=[kind.pillow_name])
    except Image.DecompressionBombError as error:
        raise _RefusedError(RejectReason.PIXEL_BOMB, f"{label}: {_text(error)}.") from None
    except UnidentifiedImageError:
        if kind is formats.TIFF and (layout := formats.tiff_layout(data)) is not None and not layout.is_usual:
            detail = f"{label} of {layout}, which Pillow does not read; convert it to 8 bits a channel first."
            raise _RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None
        # Pillow's message contains only a memory address, with which each ledger would differ.
        raise _RefusedError(RejectReason.CORRUPT, f"{label} with a broken header.") from None
    except Exception as error:  # noqa: BLE001 - broken files make Pillow's parsers raise anything
        raise _RefusedError(RejectReason.CORRUPT, f"{label} with a broken header: {_text(error)}.") from None


def _load(image: Any, label: str) -> None:
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 - broken files make Pillow's decoders raise anything
        detail = f"{label}, truncated or corrupt: {_text(error)}."
        raise _RefusedError(RejectReason.CORRUPT, detail) from None


def _limit_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        detail = f"The image has {width:,}×{height:,} = {width * height:,} pixels; max_pixels is {max_pixels:,}."
        raise _RefusedError(RejectReason.PIXEL_BOMB, detail)


def _limit_scans(data: bytes, kind: Format, label: str) -> None:
    if kind is formats.JPEG and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise _RefusedError(RejectReason.PIXEL_BOMB, f"{label} of more than {_MAX_JPEG_SCANS} scans.")


def _limit_gif_frames(data: bytes, screen: tuple[int, int], max_pixels: int) -> None:
    """Limit the frames of a GIF: TensorFlow holds all frames in memory, each in the size of the largest."""
    frames = list(formats.gif_frames(data))
    pixels = sum(width * height for width, height in frames)
    # The limit is the memory for decoding one image of max_pixels.
    if pixels > 3 * max_pixels:
        raise _UndecodableError(f"its {len(frames):,} frames have {pixels:,} pixels, more than thrice max_pixels")
    if not frames or (max(width for width, _ in frames), max(height for _, height in frames)) != screen:
        raise _UndecodableError("its frames do not cover its screen")


def _compare(pixels: np.ndarray, image: Any, kind: Format) -> None:
    shown = _upright(image)
    reference = np.asarray(_to_rgb(shown))
    if pixels.shape != reference.shape:
        raise _UndecodableError(f"it becomes {pixels.shape[1]}×{pixels.shape[0]}, not {shown.width}×{shown.height}")
    difference = np.abs(pixels.astype(np.int16) - reference)
    if shown.has_transparency_data:
        # The color of a fully transparent pixel is undefined.
        difference = difference[np.asarray(shown.convert("RGBA"))[..., 3] > 0]
    if kind is formats.JPEG:
        is_other = difference.mean() > _MAX_MEAN_DIFFERENCE_OF_JPEG
    else:
        is_other = difference.max(initial=0) > _MAX_DIFFERENCE
    if is_other:
        raise _UndecodableError("it gets other colors than in Pillow")


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - broken EXIF makes Pillow raise anything; it counts as none
        return image


def _to_rgb(image: Any, *, keeps_alpha: bool = False) -> Any:
    """Convert to three channels of 8 bits. Alpha is dropped, as in TensorFlow, or kept; 16 bits lose the lower 8.

    Raises _RefusedError where the lower bits are nearly all of the picture.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        brightest = int(values.max(initial=0))
        if 0 < brightest < _BLACK_IN_8_BITS:
            raise _RefusedError(
                RejectReason.UNSUPPORTED_FORMAT,
                f"Its values of 16 bits are {brightest:,} at most, of 65,535: the upper 8, which are kept, would be "
                f"nearly black (below {_BLACK_IN_8_BITS:,}). Spread its values over the whole range, or save 8 bits.",
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGBA" if keeps_alpha and image.has_transparency_data else "RGB")


def _refuse_pixels(data: bytes, kind: Format, label: str) -> None:
    """Refuse a TIFF whose pixels cannot become a PNG. A TIFF with other defects may pass."""
    if kind is not formats.TIFF:
        return
    try:
        image = _open(data, kind, label)
    except _RefusedError as refused:
        if refused.rejected.reason == RejectReason.UNSUPPORTED_FORMAT:
            raise
        return
    _refuse_wide_pixels(image, data, label)


def _refuse_wide_pixels(image: Any, data: bytes, label: str) -> None:
    if image.mode in {"I", "F"}:
        layout = formats.tiff_layout(data) or "pixels of 32 bits"
        raise _RefusedError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{label} of {layout}, and nothing says which value is white; convert it to 8 bits, or 16 without sign.",
        )


def _without_metadata(image: Any, data: bytes, label: str, *, keeps_alpha: bool) -> Any:
    """The upright pixels without profiles, texts and times, so that the same pixels give the same PNG."""
    _load(image, label)
    _refuse_wide_pixels(image, data, label)
    try:
        upright = _to_rgb(_upright(image), keeps_alpha=keeps_alpha)
    except ValueError as error:
        detail = f"{label} cannot be turned into PNG: {_text(error)}."
        raise _RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None
    upright.info.clear()
    return upright


def _to_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from the header, as the decoder reads it."""
    import_tensorflow()
    import tensorflow as tf

    try:
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    except tf.errors.OpError as error:
        raise _UndecodableError(error.message) from None
    return height, width


def _decode(data: bytes, background: str | None = None) -> np.ndarray:
    """Pixels as training and serving see them: uint8 [height, width, 3]."""
    import_tensorflow()
    import tensorflow as tf

    try:
        pixels: np.ndarray = _decoder(background)(tf.constant(data)).numpy()
    except tf.errors.OpError as error:
        # The op's own message is the last part, before the name of its node.
        text = error.message.split("\n\t [[")[0].rstrip().rsplit("\n", 1)[-1]
        raise _UndecodableError(text.removeprefix("assertion failed: ").strip("[].")) from None
    return pixels


@cache
def _decoder(background: str | None) -> Any:
    import tensorflow as tf

    from transfer.dataset.decode import decode_image

    return tf.function(partial(decode_image, background=background), input_signature=[tf.TensorSpec([], tf.string)])


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
