"""Image formats told from their first bytes, and what can be done with each."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Format:
    """A format: its name, Pillow's name for it, and whether `decode_image` takes it.

    Where Pillow alone cannot read it, `plugin` is the module whose import teaches it, from the package `package`.
    """

    name: str
    pillow_name: str
    is_decodable: bool = False
    suffixes: tuple[str, ...] = ()
    plugin: str | None = None
    package: str | None = None

    def named(self, key: str) -> str:
        """The format's name, with a remark where the file's name promises another one."""
        suffix = PurePosixPath(key).suffix.lower()
        is_usual = not suffix or suffix in self.suffixes
        return self.name if is_usual else f"{self.name} (named {suffix})"


JPEG = Format("JPEG", "JPEG", is_decodable=True, suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"))
PNG = Format("PNG", "PNG", is_decodable=True, suffixes=(".png", ".apng"))
GIF = Format("GIF", "GIF", is_decodable=True, suffixes=(".gif",))
BMP = Format("BMP", "BMP", is_decodable=True, suffixes=(".bmp", ".dib"))
WEBP = Format("WebP", "WEBP", is_decodable=True, suffixes=(".webp",))
AVIF = Format("AVIF", "AVIF", suffixes=(".avif",), package="pillow (11.3 or later)")
HEIC = Format("HEIC", "HEIF", suffixes=(".heic", ".heif"), plugin="pillow_heif.HeifImagePlugin", package="pillow-heif")
_TIFF = Format("TIFF", "TIFF", suffixes=(".tif", ".tiff"))
_JPEG_2000 = Format("JPEG 2000", "JPEG2000", suffixes=(".jp2", ".j2k", ".jpx"))
_JPEG_XL = Format("JPEG XL", "JXL", suffixes=(".jxl",), plugin="pillow_jxl", package="pillow-jxl-plugin")
_PNM = Format("PNM", "PPM", suffixes=(".ppm", ".pgm", ".pbm", ".pnm"))
_SIGNATURES = {
    b"\xff\xd8\xff": JPEG,
    b"\x89PNG\r\n\x1a\n": PNG,
    b"GIF8": GIF,
    b"BM": BMP,
    b"II*\0": _TIFF,
    b"MM\0*": _TIFF,
    b"II+\0": _TIFF,
    b"MM\0+": _TIFF,
    b"\0\0\0\x0cjP  \r\n": _JPEG_2000,
    b"\xff\x4f\xff\x51": _JPEG_2000,
    b"\0\0\0\x0cJXL \r\n": _JPEG_XL,
    b"\xff\x0a": _JPEG_XL,
    b"\0\0\1\0": Format("ICO", "ICO", suffixes=(".ico",)),
    b"8BPS": Format("PSD", "PSD", suffixes=(".psd",)),
    b"qoif": Format("QOI", "QOI", suffixes=(".qoi",)),
    **{b"P%d%c" % (kind, space): _PNM for kind in range(1, 7) for space in b" \t\r\n#"},
}
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def recognize(data: bytes) -> Format | None:
    """The format that the content says, whatever the file's name is; None when it is no known image format."""
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


def gif_frames(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height in pixels of each frame of a GIF, up to the first thing in it that is not GIF."""
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
