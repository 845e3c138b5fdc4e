"""Small pictures for the report, as data URIs."""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

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


def make_thumbnail(data: bytes) -> Thumbnail | None:
    """Make a small picture of an encoded image, honoring EXIF orientation; None if it cannot be read."""
    try:
        picture = _small_picture(data)
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


def _small_picture(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # lets libjpeg decode large photos at a fraction of their size
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # 16-bit grayscale: training uses the high byte; Pillow's conversion would clip to white.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    picture = _as_the_network_sees_it(upright, is_gif=image.format == "GIF")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    picture.info.clear()  # no EXIF, comments or profiles of the original in a report that is passed around
    return picture


def _as_the_network_sees_it(picture: Image.Image, *, is_gif: bool) -> Image.Image:
    """Drop alpha: transparent pixels get the colors that are stored under them, in a GIF black."""
    if is_gif and picture.has_transparency_data:
        black = Image.new("RGBA", picture.size, "black")
        return Image.alpha_composite(black, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")
