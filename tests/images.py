"""Makers of image files, ordinary and odd, for tests: each gives the bytes of one file; and real photographs."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION_TAG = 0x0112
REAL_IMAGES = Path(os.environ.get("TRANSFER_PHOTOGRAPHS", Path(__file__).parents[2] / "shared" / "data"))
"""Sets of real images that are no part of the project, by default beside it. Where they are not, tests are skipped."""


def picture(width: int = 48, height: int = 32, *, seed: int = 0) -> Image.Image:
    """A smooth colorful RGB picture without any symmetry, so that every turn of it is another picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, format_name: str, **options) -> bytes:
    """The picture as a file of that Pillow format; WebP without loss unless told otherwise."""
    if format_name == "WEBP":
        options = {"lossless": True, **options}
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def animate(frames: Sequence[Image.Image], format_name: str, **options) -> bytes:
    """The pictures as an animation: GIF, WEBP or PNG."""
    return encode(frames[0], format_name, save_all=True, append_images=list(frames[1:]), duration=50, **options)


def with_alpha(image: Image.Image) -> Image.Image:
    """RGBA: the upper third transparent, the next half so, the rest opaque."""
    alpha = np.full((image.height, image.width), 255, np.uint8)
    alpha[: image.height // 3] = 0
    alpha[image.height // 3 : image.height // 2] = 128
    turned = image.convert("RGBA")
    turned.putalpha(Image.fromarray(alpha))
    return turned


def tiff_block(
    orientation: int, *, order: str = "<", before: int = 0, after: int = 0, kind: int = 3, count: int = 1, gap: int = 0
) -> bytes:
    """An EXIF block: a TIFF header and one directory with the orientation among other entries.

    `order` is `<` (II) or `>` (MM); `kind` is TIFF's type of the value (1 byte, 3 short, 4 long); `gap` bytes stand
    between header and directory.
    """
    value = struct.pack(order + {1: "B", 3: "H", 4: "L"}.get(kind, "H"), orientation).ljust(4, b"\0")
    entry = struct.pack(order + "HHL", ORIENTATION_TAG, kind, count) + value
    # Tags stand in rising order: 0x0100 and up before it, 0x0200 and up after it.
    early = [struct.pack(order + "HHLL", 0x0100 + number % 18, 4, 1, 6) for number in range(before)]
    late = [struct.pack(order + "HHLL", 0x0200 + number, 4, 1, 6) for number in range(after)]
    entries = [*early, entry, *late]
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + gap)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + struct.pack(order + "L", 0)
    return header + b"\xee" * gap + directory


def tiff(width: int, height: int, *, bits: int, channels: int, sample_format: int, pixels: bytes = b"") -> bytes:
    """A whole TIFF, gray with extra channels, as microscopes write it.

    `sample_format`: 1, or 2 for signed numbers, or 3 for floats. `pixels`: default zeros.
    """
    size = width * height * channels * bits // 8
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [1],
        273: [0],
        277: [channels],
        278: [height],
        279: [size],
        **({338: [0] * (channels - 1)} if channels > 1 else {}),
        339: [sample_format] * channels,
    }
    start = 8 + 2 + 12 * len(tags) + 4
    behind = b"".join(struct.pack(f"<{len(values)}H", *values) for values in tags.values() if len(values) > 2)
    tags[273] = [start + len(behind)]
    entries, at = b"", start
    for tag, values in tags.items():
        entries += struct.pack("<HHL", tag, 3, len(values))
        if len(values) > 2:
            entries += struct.pack("<L", at)
            at += 2 * len(values)
        else:
            entries += struct.pack(f"<{len(values)}H", *values).ljust(4, b"\0")
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + bytes(4) + behind + (pixels or bytes(size))


def segment(marker: int, payload: bytes) -> bytes:
    """One JPEG segment: `segment(0xFE, b"text")` is a comment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def exif_segment(block: bytes) -> bytes:
    """The APP1 segment that holds an EXIF block."""
    return segment(0xE1, b"Exif\0\0" + block)


def insert(jpeg: bytes, *segments: bytes, after_jfif: bool = True) -> bytes:
    """The JPEG (as Pillow writes it, with a JFIF header) with segments put behind that header or in its place."""
    return jpeg[: 20 if after_jfif else 2] + b"".join(segments) + jpeg[20:]


def chunk(name: bytes, payload: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(
    width: int, height: int, bits: int, color_type: int, rows: bytes, *, extra: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG with any header; `rows` has a filter byte and samples for each row, `extra` further chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlace)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(values: np.ndarray, *, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits a channel: uint16 [height, width], gray, or [height, width, 2 to 4]."""
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, extra=extra)


def insert_chunk(png_bytes: bytes, name: bytes, payload: bytes, *, last: bool = False) -> bytes:
    """The PNG with one more chunk: behind the header, or behind the pixels."""
    at = len(png_bytes) - 12 if last else 33
    return png_bytes[:at] + chunk(name, payload) + png_bytes[at:]


def gif(screen: tuple[int, int], *frames: tuple[int, int, int, int], trailer: bytes = b";") -> bytes:
    """A GIF of two colors, green everywhere; each frame is (left, top, width, height)."""
    parts = [b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\x10\xff\x20"]
    for left, top, width, height in frames:
        # Codes of 3 bits: clear (4), then color 1 twice, over and over so that the code size never grows; end (5).
        codes = (
            [code for _ in range(width * height // 2) for code in (4, 1, 1)] + [4] + [1] * (width * height % 2) + [5]
        )
        bits = "".join(f"{code:03b}" for code in reversed(codes))
        pixels = int(bits, 2).to_bytes((len(bits) + 7) // 8, "little")
        blocks = b"".join(bytes([len(piece)]) + piece for piece in _pieces(pixels, 255))
        parts.append(b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\x02" + blocks + b"\0")
    return b"".join(parts) + trailer


def bmp(
    image: Image.Image, *, bits: int = 24, compression: int = 0, masks: bytes = b"", top_down: bool = False
) -> bytes:
    """A BMP of 24 or 32 bits with any compression number, color masks and order of rows."""
    pixels = np.asarray(image.convert("RGB"))[..., ::-1]
    if bits == 32:
        pixels = np.concatenate([pixels, np.zeros((*pixels.shape[:2], 1), np.uint8)], axis=-1)
    rows = pixels if top_down else pixels[::-1]
    padding = b"\0" * (-len(rows[0].tobytes()) % 4)
    body = b"".join(row.tobytes() + padding for row in rows)
    height = -image.height if top_down else image.height
    offset = 54 + len(masks)
    info = struct.pack("<IiiHHIIiiII", 40, image.width, height, 1, bits, compression, len(body), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + masks + body


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


SIDE = 96


def write_photographs(folder: Path, *, step: int = 90) -> Path:
    """Write square parts of a temple and of a flower as JPEG files in class folders, a part every `step` pixels.

    A temple is nearly blue and a flower nearly red, so that any network which sees colors tells them apart.
    """
    from sklearn.datasets import load_sample_images

    names, colors = ("temple", "flower"), ((40, 90, 200), (200, 60, 40))
    for name, color, photograph in zip(names, colors, load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        height, width, _ = photograph.shape
        for top in range(0, height - SIDE, step):
            for left in range(0, width - SIDE, step):
                part = Image.fromarray(photograph[top : top + SIDE, left : left + SIDE])
                tinted = Image.blend(part, Image.new("RGB", part.size, color), 0.9)
                tinted.save(folder / name / f"{top:03}-{left:03}.jpg")
    return folder


def encoded(width, height, *, kind="PNG", mode="RGB", **options):
    """An image of one color, as the bytes of a file."""
    target = io.BytesIO()
    Image.new(mode, (width, height)).save(target, kind, **options)
    return target.getvalue()
