"""Image formats, recognized by their first bytes, and which library decodes each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple


@dataclass(frozen=True)
class Format:
    """A format: its name, Pillow's name for it, and whether `decode_image` decodes it, and its alpha.

    `plugin`: module of the package `package` whose import lets Pillow read the format; None if Pillow can by itself.
    """

    name: str
    pillow_name: str
    is_decodable: bool = False
    has_alpha: bool = False
    suffixes: tuple[str, ...] = ()
    plugin: str | None = None
    package: str | None = None

    def named(self, key: str) -> str:
        """The format's name, with a remark where the file's name promises another one."""
        suffix = PurePosixPath(key).suffix.lower()
        is_usual = not suffix or suffix in self.suffixes
        return self.name if is_usual else f"{self.name} (named {suffix})"


JPEG = Format("JPEG", "JPEG", is_decodable=True, suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"))
PNG = Format("PNG", "PNG", is_decodable=True, has_alpha=True, suffixes=(".png", ".apng"))
GIF = Format("GIF", "GIF", is_decodable=True, suffixes=(".gif",))
BMP = Format("BMP", "BMP", is_decodable=True, suffixes=(".bmp", ".dib"))
WEBP = Format("WebP", "WEBP", is_decodable=True, has_alpha=True, suffixes=(".webp",))
AVIF = Format("AVIF", "AVIF", suffixes=(".avif",), package="pillow (11.3 or later)")
HEIC = Format("HEIC", "HEIF", suffixes=(".heic", ".heif"), plugin="pillow_heif.HeifImagePlugin", package="pillow-heif")
TIFF = Format("TIFF", "TIFF", suffixes=(".tif", ".tiff"))
_JPEG_2000 = Format("JPEG 2000", "JPEG2000", suffixes=(".jp2", ".j2k", ".jpx"))
_JPEG_XL = Format("JPEG XL", "JXL", suffixes=(".jxl",), plugin="pillow_jxl", package="pillow-jxl-plugin")
_PNM = Format("PNM", "PPM", suffixes=(".ppm", ".pgm", ".pbm", ".pnm"))
_SIGNATURES = {
    b"\xff\xd8\xff": JPEG,
    b"\x89PNG\r\n\x1a\n": PNG,
    b"GIF8": GIF,
    b"BM": BMP,
    b"II*\0": TIFF,
    b"MM\0*": TIFF,
    b"II+\0": TIFF,
    b"MM\0+": TIFF,
    b"\0\0\0\x0cjP  \r\n": _JPEG_2000,
    b"\xff\x4f\xff\x51": _JPEG_2000,
    b"\0\0\0\x0cJXL \r\n": _JPEG_XL,
    b"\xff\x0a": _JPEG_XL,
    b"\0\0\1\0": Format("ICO", "ICO", suffixes=(".ico",)),
    b"8BPS": Format("PSD", "PSD", suffixes=(".psd",)),
    b"qoif": Format("QOI", "QOI", suffixes=(".qoi",)),
    **{b"P%d%c" % (kind, space): _PNM for kind in range(1, 7) for space in b" \t\r\n#"},
}
SUFFIXES = tuple({suffix for kind in (WEBP, AVIF, HEIC, *_SIGNATURES.values()) for suffix in kind.suffixes})
"""All endings of image files, in lower case."""
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def recognize(data: bytes) -> Format | None:
    """The format of a file by its content, not by its name; None for an unknown format."""
    if data[4:8] == b"ftyp":
        # A box: size, "ftyp", major brand, version, compatible brands. `mif1` alone does not say which codec it is.
        brands = {data[start : start + 4] for start in range(8, min(int.from_bytes(data[:4]), 256), 4)}
        if brands & _AVIF_BRANDS:
            return AVIF
        if brands & _HEIC_BRANDS:
            return HEIC
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def png_size(data: bytes) -> tuple[int, int]:
    """Height and width of a PNG from its header, which always comes first; 0 if the file is shorter."""
    width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
    return height, width


def is_deep_png(data: bytes) -> bool:
    """Whether it is a PNG of 16 bits a channel, by its header."""
    return data.startswith(b"\x89PNG") and data[24:25] == b"\x10"


class TiffLayout(NamedTuple):
    """How a TIFF stores a pixel."""

    channels: int
    bits: int
    sample_format: int

    @property
    def is_usual(self) -> bool:
        """Whether Pillow reads such pixels, if the rest of the file is intact."""
        return self.bits <= 8 and self.channels <= 4 and self.sample_format == 1

    def __str__(self) -> str:
        signed = {2: ", signed", 3: ", float"}.get(self.sample_format, "")
        return f"{self.channels} channel{'s' * (self.channels > 1)} of {self.bits} bits{signed}"


def tiff_layout(data: bytes) -> TiffLayout | None:
    """The layout in the first directory of a classic TIFF; None if it cannot be read or is no TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return None
    found = {}
    with suppress(struct.error):
        (start,) = struct.unpack_from(order + "L", data, 4)
        (entries,) = struct.unpack_from(order + "H", data, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHL", data, at)
            if tag in {258, 277, 339} and kind == 3:  # bits of each sample, samples, formats of each: shorts
                where = at + 8 if count <= 2 else struct.unpack_from(order + "L", data, at + 8)[0]
                (found[tag],) = struct.unpack_from(order + "H", data, where)
        return TiffLayout(found.get(277, 1), found.get(258, 1), found.get(339, 1))
    return None


def gif_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height in pixels of each frame of a GIF, up to the first bytes that are not GIF."""
    position = 13 + _color_table_size(data[10:11])
    with suppress(struct.error, IndexError):
        while data[position] in b"!,":
            if data[position] == ord(","):
                width, height = struct.unpack_from("<HH", data, position + 5)
                yield width, height
                # Descriptor, color table, code size.
                position += 10 + _color_table_size(data[position + 9 : position + 10]) + 1
            else:
                position += 2
            while data[position]:  # sub-blocks, each with its length, to the empty one
                position += 1 + data[position]
            position += 1


def _color_table_size(flags: bytes) -> int:
    return 3 << (1 + (flags[0] & 7)) if flags and flags[0] & 0x80 else 0
