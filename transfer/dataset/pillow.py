"""What Pillow makes of a file: what TensorFlow's picture is compared with, and PNGs of what that does not decode."""

from __future__ import annotations

import io
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

from transfer.dataset import formats
from transfer.dataset.formats import Format
from transfer.dataset.refusals import RefusedError, RejectReason


def open_image(data: bytes, kind: Format, label: str) -> Any:
    """Read the header with Pillow, lazily: no pixel is decoded. Raises RefusedError."""
    from PIL import Image, UnidentifiedImageError

    if kind.plugin:
        with suppress(ImportError):
            import_module(kind.plugin)
    Image.init()
    if kind.pillow_name not in Image.OPEN:
        advice = f"install {kind.package}" if kind.package else "this build of Pillow does not read it"
        raise RefusedError(RejectReason.UNSUPPORTED_FORMAT, f"{label} cannot be turned into PNG here: {advice}.")
    try:
        return Image.open(io.BytesIO(data), formats=[kind.pillow_name])
    except Image.DecompressionBombError as error:
        raise RefusedError(RejectReason.PIXEL_BOMB, f"{label}: {_text(error)}.") from None
    except UnidentifiedImageError:
        if kind is formats.TIFF and (layout := formats.tiff_layout(data)) is not None and not layout.is_usual:
            detail = f"{label} of {layout}, which Pillow does not read; convert it to 8 bits a channel first."
            raise RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None
        # Pillow's sentence says no more than where in memory the file is, which would make each ledger another.
        raise RefusedError(RejectReason.CORRUPT, f"{label} with a broken header.") from None
    except Exception as error:  # noqa: BLE001 - broken files make Pillow's parsers raise anything
        raise RefusedError(RejectReason.CORRUPT, f"{label} with a broken header: {_text(error)}.") from None


def load_pixels(image: Any, label: str) -> None:
    """Decode a file that was opened. Raises RefusedError."""
    try:
        image.load()
    except Exception as error:  # noqa: BLE001 - broken files make Pillow's decoders raise anything
        detail = f"{label}, truncated or corrupt: {_text(error)}."
        raise RefusedError(RejectReason.CORRUPT, detail) from None


def upright(image: Any) -> Any:
    """The image turned as its EXIF says."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - broken EXIF makes Pillow raise anything; it counts as none
        return image


def is_deep(image: Any) -> bool:
    """Whether Pillow has all 16 bits of its pixels: it does of gray images, and has the upper 8 of colors."""
    return str(image.mode).startswith("I;16")


def to_rgb(image: Any, *, keeps_alpha: bool = False) -> Any:
    """Three channels of 8 bits. Alpha is dropped, as TensorFlow drops it, or kept; 16 bits lose the lower 8."""
    from PIL import Image

    if is_deep(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGBA" if keeps_alpha and image.has_transparency_data else "RGB")


def refuse_pixels(data: bytes, kind: Format, label: str) -> None:
    """Raise RefusedError for a TIFF of pixels that do not become a PNG. One that is broken otherwise may pass."""
    if kind is not formats.TIFF:
        return
    try:
        image = open_image(data, kind, label)
    except RefusedError as refused:
        if refused.rejected.reason == RejectReason.UNSUPPORTED_FORMAT:
            raise
        return
    _refuse_wide_pixels(image, data, label)


def picture_alone(image: Any, data: bytes, kind: Format, label: str, *, keeps_alpha: bool) -> Any:
    """The picture upright, of 8 bits a channel or gray of 16. Raises RefusedError.

    Its profiles, texts and times are left out: they would make other bytes of it.
    """
    load_pixels(image, label)
    _refuse_wide_pixels(image, data, label)
    turned = upright(image)
    try:
        if is_deep(turned) or turned.mode == "I":
            return _gray_of_16_bits(turned, data, label)
        if kind is formats.PNG and formats.is_deep_png(data):
            raise RefusedError(
                RejectReason.UNSUPPORTED_FORMAT,
                f"{label} of 16 bits a channel, of which Pillow reads 8; save it again, without what turns it.",
            )
        picture = to_rgb(turned, keeps_alpha=keeps_alpha)
    except ValueError as error:
        detail = f"{label} cannot be turned into PNG: {_text(error)}."
        raise RefusedError(RejectReason.UNSUPPORTED_FORMAT, detail) from None
    picture.info.clear()
    return picture


def to_png(image: Any) -> bytes:
    """The file of a picture; the same for the same picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _gray_of_16_bits(image: Any, data: bytes, label: str) -> Any:
    from PIL import Image

    values = np.asarray(image)
    if (smallest := int(values.min())) < 0:
        layout = formats.tiff_layout(data)
        raise RefusedError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{label} of {layout}, with values below 0 (the smallest is {smallest:,}); add an offset first.",
        )
    return Image.fromarray(values.astype(np.uint16))


def _refuse_wide_pixels(image: Any, data: bytes, label: str) -> None:
    if image.mode not in {"I", "F"}:
        return
    layout = formats.tiff_layout(data)
    if layout is None or image.mode == "F" or layout.bits != 16:
        found = layout or "pixels of 32 bits"
        raise RefusedError(
            RejectReason.UNSUPPORTED_FORMAT,
            f"{label} of {found}, and nothing says which value is white; convert it to 8 or 16 bits.",
        )


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
