"""The check of an image by its bytes, before it enters a dataset.

An accepted image was decoded here by the same function that training and serving use, so it cannot fail there.
docs/images.md says what happens to each format and each defect.
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from transfer.config import Depth
from transfer.dataset import formats
from transfer.dataset.formats import Format
from transfer.dataset.pillow import (
    is_deep,
    load_pixels,
    open_image,
    picture_alone,
    refuse_pixels,
    to_png,
    to_rgb,
    upright,
)
from transfer.dataset.refusals import RefusedError, RejectedImage, RejectReason
from transfer.runtime.startup import import_tensorflow

CHECK_VERSION = 5
"""Version of this check. It is raised when the check accepts, stores or describes images differently, so that results
of earlier ingests are not reused."""
# A progressive JPEG has about ten scans. Each costs a pass over all pixels, however few bytes it has.
_MAX_JPEG_SCANS = 100
# Pillow's messages for compressed texts and profiles beyond its limit.
_UNPACKS_TO_MUCH = "Decompressed data too large"
# Of a JPEG, in Pillow's words: all but CMYK.
_MODES_READ_IN_ONE_WAY = {"RGB", "L"}
# Largest difference in 0..255. Pillow and TensorFlow convert CMYK slightly differently; inverted colors are far beyond.
_MAX_MEAN_DIFFERENCE_OF_JPEG = 8
# The other decoders agree exactly; versions of the WebP library may round differently one day.
_MAX_DIFFERENCE = 8
_OPAQUE = 2**16 - 1


@dataclass(frozen=True)
class AcceptedImage:
    """An image that decodes: its bytes (PNG if transcoded), size in pixels as displayed (upright), and format.

    `pixels`: what `decode_image` makes of the bytes, if that was asked for and the check came by it.
    """

    data: bytes
    width: int
    height: int
    format: str
    pixels: np.ndarray | None = field(default=None, compare=False, repr=False)


class _UndecodableError(Exception):
    """TensorFlow cannot decode the image, or decodes it to other pixels than Pillow does."""


class _Wanted(NamedTuple):
    """What an image may be and becomes, as `check_image` is told."""

    max_pixels: int
    transcode: bool
    background: str | None
    depth: Depth


def check_image(
    data: bytes,
    *,
    key: str,
    max_pixels: int,
    max_file_size_bytes: int,
    transcode: bool,
    background: str | None = None,
    depth: Depth = "reject",
    with_pixels: bool = False,
) -> AcceptedImage | RejectedImage:
    """Check one image file by decoding it; never raises because of what is in `data`.

    `key`: name of the file. The content alone decides; a name that promises another format is mentioned. Images with
    more than `max_pixels` pixels are refused by their header. With `transcode`, a file that TensorFlow does not decode
    correctly becomes an upright PNG of its first frame if Pillow can read it; the same bytes always give the same PNG.
    `background`, `#rrggbb`: an image with transparent pixels is put on this color and becomes a PNG, too.
    `depth`: what becomes of 16 bits a channel; the bytes depend on it only with a background. `with_pixels`: leave the
    decoded pixels in the result, which takes memory.
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
        with _no_warnings:
            accepted = _check(data, kind, kind.named(key), _Wanted(max_pixels, transcode, background, depth))
            return accepted if with_pixels else replace(accepted, pixels=None)
    except RefusedError as refused:
        return refused.rejected


def is_checked_by_decoding(data: bytes, *, max_pixels: int, max_file_size_bytes: int) -> bool:
    """Whether `check_image` accepts a file as it is if TensorFlow decodes it, and refuses it otherwise.

    So whoever decodes it anyway need not have it decoded by the check, too. This is a JPEG of gray or of three colors,
    the most frequent file; only its header is read here.
    """
    if len(data) > max_file_size_bytes or formats.recognize(data) is not formats.JPEG:
        return False
    try:
        with _no_warnings:
            image = open_image(data, formats.JPEG, formats.JPEG.name)
            _limit_pixels(image.width, image.height, max_pixels)
            _limit_scans(data, formats.JPEG, formats.JPEG.name)
    except RefusedError:
        return False
    return image.mode in _MODES_READ_IN_ONE_WAY


def _check(data: bytes, kind: Format, label: str, wanted: _Wanted) -> AcceptedImage:
    if not kind.is_decodable and not wanted.transcode:
        # Recommend transcoding only if it would help.
        refuse_pixels(data, kind, label)
        tool = f" (with {kind.package} installed)" if kind.package else ""
        raise RefusedError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{label} is not decoded in a model's graph; `transcode: true` turns it into PNG{tool}.",
        )
    try:
        return _check_with_pillow(data, kind, label, wanted)
    except RefusedError as refused:
        if kind not in {formats.JPEG, formats.PNG} or refused.rejected.reason != RejectReason.CORRUPT:
            raise
        return _decoded_alone(data, kind, refused, label, wanted)


def _check_with_pillow(data: bytes, kind: Format, label: str, wanted: _Wanted) -> AcceptedImage:
    image = open_image(data, kind, label)
    _limit_pixels(image.width, image.height, wanted.max_pixels)
    if kind.is_decodable:
        try:
            pixels = _decode_as_pillow(data, kind, image, label, wanted)
            if wanted.background is not None and kind.has_alpha and image.has_transparency_data:
                return _on_background(data, label, wanted)
            return AcceptedImage(data, pixels.shape[1], pixels.shape[0], kind.name, pixels)
        except _UndecodableError as problem:
            load_pixels(image, label)
            if not wanted.transcode:
                raise RefusedError(
                    RejectReason.UNSUPPORTED_FORMAT,
                    f"{label} that TensorFlow does not decode right: {problem}. `transcode: true` turns it into PNG.",
                ) from None
    picture = picture_alone(image, data, kind, label, keeps_alpha=wanted.background is not None)
    png = to_png(picture)
    try:
        if is_deep(picture):
            _decode(png, label, wanted.depth)
            return AcceptedImage(png, picture.width, picture.height, formats.PNG.name)
        return _on_background(png, label, wanted)
    except _UndecodableError as problem:
        detail = f"{label} that TensorFlow does not decode even as PNG: {problem}."
        raise RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None


def _decoded_alone(data: bytes, kind: Format, refused: RefusedError, label: str, wanted: _Wanted) -> AcceptedImage:
    """Accept a JPEG or PNG that TensorFlow decodes although Pillow finds it corrupt: the damage is outside the pixels.

    Raises `refused` if TensorFlow cannot decode it either, or if a compressed text in it is too large.
    """
    if _UNPACKS_TO_MUCH in refused.rejected.detail:
        raise refused
    try:
        height, width = formats.png_size(data) if kind is formats.PNG else _jpeg_size(data)
        _limit_pixels(width, height, wanted.max_pixels)
        _limit_scans(data, kind, kind.name)
        if kind.has_alpha and wanted.background is not None:
            return _on_background(data, label, wanted)
        pixels = _decode(data, label, wanted.depth)
    except _UndecodableError:
        raise refused from None
    return AcceptedImage(data, pixels.shape[1], pixels.shape[0], kind.name, pixels)


def _on_background(data: bytes, label: str, wanted: _Wanted) -> AcceptedImage:
    """Encode an image as PNG of 8 bits a channel, on the background if there is one; one of 16 bits stays as it is."""
    from PIL import Image

    if wanted.depth != "reject" and formats.is_deep_png(data):
        height, width, _ = (values := _deep_values(data)).shape
        if values[..., 3].min() < _OPAQUE:
            raise RefusedError(
                RejectReason.UNSUPPORTED_FORMAT,
                f"{label} of 16 bits a channel with transparent pixels. On dataset.background they would lose their "
                "lower 8 bits: leave it out, save them without alpha, or set `dataset.depth: reject`.",
            )
        return AcceptedImage(data, width, height, formats.PNG.name)
    pixels = _decode(data, label, wanted.depth, wanted.background).astype(np.uint8)
    height, width, _ = pixels.shape
    return AcceptedImage(to_png(Image.fromarray(pixels)), width, height, formats.PNG.name)


def _decode_as_pillow(data: bytes, kind: Format, image: Any, label: str, wanted: _Wanted) -> np.ndarray:
    """Decode with TensorFlow and compare with Pillow's pixels. Returns the pixels as training and serving see them.

    TensorFlow allocates as many pixels as the header says, which Pillow has read before; for BMP at most as many as the
    file has bytes. Only frames of a GIF can be larger than its header says.
    """
    _limit_scans(data, kind, label)
    if kind is formats.GIF:
        _limit_gif_frames(data, image.size, wanted.max_pixels)
    # Then Pillow need not decode it, too.
    is_compared = kind is not formats.JPEG or image.mode not in _MODES_READ_IN_ONE_WAY
    if is_compared:
        load_pixels(image, label)
    pixels = _decode(data, label, wanted.depth)
    if kind is formats.PNG and formats.is_deep_png(data):
        _compare_deep(_deep_values(data)[..., :3], image)
    elif is_compared:
        _compare(pixels, image, kind)
    return pixels


class _NoWarnings:
    """No warnings while any thread is inside. Python's own filter belongs to the process, whichever thread sets it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._before.__exit__(None, None, None)


_no_warnings = _NoWarnings()


def _limit_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        detail = f"The image has {width:,}×{height:,} = {width * height:,} pixels; max_pixels is {max_pixels:,}."
        raise RefusedError(RejectReason.PIXEL_BOMB, detail)


def _limit_scans(data: bytes, kind: Format, label: str) -> None:
    if kind is formats.JPEG and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise RefusedError(RejectReason.PIXEL_BOMB, f"{label} of more than {_MAX_JPEG_SCANS} scans.")


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
    shown = upright(image)
    reference = np.asarray(to_rgb(shown))
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


def _compare_deep(values: np.ndarray, image: Any) -> None:
    """Compare a PNG of 16 bits a channel, its values uint16 [height, width, 3]; of colors Pillow has the upper 8."""
    _compare((values >> 8).astype(np.uint8), image, formats.PNG)
    if is_deep(image) and not np.array_equal(values[..., 0], np.asarray(upright(image))):
        raise _UndecodableError("it gets other values than in Pillow")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width from the header, as the decoder reads it."""
    import_tensorflow()
    import tensorflow as tf

    try:
        height, width, _ = tf.io.extract_jpeg_shape(data).numpy().tolist()
    except tf.errors.OpError as error:
        raise _UndecodableError(error.message) from None
    return height, width


def _decode(data: bytes, label: str, depth: Depth, background: str | None = None) -> np.ndarray:
    """Pixels as training and serving see them: [height, width, 3] in 0..255. Raises RefusedError for a black image."""
    if depth == "reject" and formats.is_deep_png(data):
        _refuse_dark(_deep_values(data)[..., :3], label)
    return _run(_decoder(depth, background), data)


def _deep_values(data: bytes) -> np.ndarray:
    """A PNG of 16 bits a channel, upright: uint16 [height, width, 4], alpha last."""
    return _run(_deep_decoder(), data)


def _refuse_dark(values: np.ndarray, label: str) -> None:
    from transfer.dataset.decode import SMALLEST_BRIGHTEST

    brightest = int(values.max())
    if 0 < brightest < SMALLEST_BRIGHTEST:
        window = f"{{window: [0, {2 ** max(brightest.bit_length(), 8) - 1}]}}"
        raise RefusedError(
            RejectReason.TOO_DARK,
            f"{label} of 16 bits a channel whose largest value is {brightest:,}. Its upper 8 bits have fewer than 16 "
            f"of 256 levels, nearly black; they are taken where the largest value is {SMALLEST_BRIGHTEST:,} or more. "
            f"Set `dataset.depth: scale` or, for all images alike, `dataset.depth: {window}`.",
        )


def _run(decoder: Any, data: bytes) -> np.ndarray:
    import_tensorflow()
    import tensorflow as tf

    try:
        pixels: np.ndarray = decoder(tf.constant(data)).numpy()
    except tf.errors.OpError as error:
        raise _UndecodableError(op_text(error)) from None
    return pixels


def op_text(error: Any) -> str:
    """What the TensorFlow operation itself says in an OpError: its last line, before the name of its node."""
    text = str(error.message.split("\n\t [[")[0].rstrip().rsplit("\n", 1)[-1])
    return text.removeprefix("assertion failed: ").strip("[].")


@cache
def _decoder(depth: Depth, background: str | None) -> Any:
    import_tensorflow()
    import tensorflow as tf

    from transfer.dataset.decode import decode_image

    decode = partial(decode_image, depth=depth, background=background)
    return tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)])


@cache
def _deep_decoder() -> Any:
    import_tensorflow()
    import tensorflow as tf

    from transfer.dataset.decode import decode_deep_png
    from transfer.dataset.orientation import apply_orientation, exif_orientation

    def decode(image_bytes: tf.Tensor) -> tf.Tensor:
        return apply_orientation(decode_deep_png(image_bytes, channels=4), exif_orientation(image_bytes))

    return tf.function(decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
