"""Small pictures for the report, as data URIs."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from transfer.config import Depth
from transfer.dataset.formats import is_deep_png
from transfer.dataset.pillow import is_deep

logger = logging.getLogger(__name__)

MAX_SIDE = 160
# Up to this size a picture is stored lossless: it is tiny anyway, and JPEG would blur the pixels that the model saw.
_LOSSLESS_SIDE = 64


@dataclass(frozen=True)
class Thumbnail:
    """A picture of at most 160 pixels a side, upright. `uri` is a `data:` URI."""

    uri: str
    width: int
    height: int

    @property
    def is_tiny(self) -> bool:
        """Whether the page shows it enlarged, with square pixels instead of a blur."""
        return max(self.width, self.height) <= _LOSSLESS_SIDE


def make_thumbnail(data: bytes, depth: Depth = "reject") -> Thumbnail | None:
    """Make a small picture of an encoded image, honoring EXIF orientation; None if it cannot be read.

    `depth`: how a model sees 16 bits a channel. Of colors of 16 bits only the upper 8 are shown so.
    """
    try:
        picture = _small_picture(data, depth)
    except Exception as error:  # noqa: BLE001 - decoders raise nearly anything, and no picture is worth losing the report
        logger.warning("No thumbnail for an image of %d bytes: %s", len(data), error)
        return None
    lossless = max(picture.size) <= _LOSSLESS_SIDE
    encoded = io.BytesIO()
    if lossless:
        picture.save(encoded, "PNG", optimize=True)
    else:
        picture.save(encoded, "JPEG", quality=82, optimize=True)
    kind = "png" if lossless else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return Thumbnail(uri, *picture.size)


def _small_picture(data: bytes, depth: Depth) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # lets libjpeg decode large photos at a fraction of their size
        upright = ImageOps.exif_transpose(image)
    if is_deep(upright):
        # Pillow's conversion would clip to white.
        upright = Image.fromarray(_in_window(np.asarray(upright), depth))
    elif is_deep_png(data) and depth != "reject":
        upright = Image.fromarray(_in_window(np.asarray(upright.convert("RGB"), np.uint16) * 257, depth))
    picture = _as_the_network_sees_it(upright, is_gif=image.format == "GIF")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    picture.info.clear()  # no EXIF, comments or profiles of the original in a report that is passed around
    return picture


def _in_window(values: np.ndarray, depth: Depth) -> np.ndarray:
    """Values of 16 bits as uint8, as `decode_image` shows them to a network, rounded."""
    if depth == "reject":
        return (values >> 8).astype(np.uint8)
    low, high = (int(values.min()), int(values.max())) if isinstance(depth, str) else depth
    shown: np.ndarray = np.rint((np.clip(values, low, high) - float(low)) * 255 / max(high - low, 1))
    return shown.astype(np.uint8)


def _as_the_network_sees_it(picture: Image.Image, *, is_gif: bool) -> Image.Image:
    """Drop alpha: transparent pixels get the colors that are stored under them, in a GIF black."""
    if is_gif and picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        return Image.alpha_composite(black, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")
