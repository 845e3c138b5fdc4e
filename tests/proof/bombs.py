"""Input that wants to fill memory: `python -m tests.proof.bombs FOLDER FILES` says what it cost to refuse each.

In a process of its own, without TensorFlow, so that its peak memory is that of the refusal. One line of JSON a bomb:
its name, the error's type and message, and the growth of memory in MiB.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tests.sourcing import config_of
from transfer.config import DatasetConfig, StorageConfig, load_config
from transfer.dataset.check import AcceptedImage, check_image
from transfer.dataset.ingest import ingest
from transfer.dataset.listing import list_source
from transfer.dataset.refusals import RejectedImage
from transfer.dataset.sources import open_source
from transfer.errors import TransferError
from transfer.runtime import parallel
from transfer.storage import open_store

MIB = 1024**2
BOMB_MIB = 256
LIMIT = 8 * MIB
TEXT_BYTES = 128 * 1024 - 1


def zeros_in_a_zip(folder: Path) -> Path:
    path = folder / "zeros.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened, opened.open("cat/1.png", "w") as member:
        for _ in range(BOMB_MIB):
            member.write(bytes(MIB))
    return path


def zeros_in_a_tar(folder: Path) -> Path:
    path = folder / "zeros.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as opened:
        write_zeros(opened)
    return path


def zeros_in_an_xz(folder: Path) -> Path:
    path = folder / "zeros.tar.xz"
    with lzma.open(path, "wb", preset=0) as opened:
        write_zeros(opened)
    return path


def write_zeros(opened: IO[bytes]) -> None:
    header = tarfile.TarInfo("cat/1.png")
    header.size = BOMB_MIB * MIB
    opened.write(header.tobuf())
    for _ in range(BOMB_MIB):
        opened.write(bytes(MIB))


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def text_in_a_png() -> bytes:
    """Compressed text behind a good header, which Pillow unpacks while it reads it."""
    body = png(8, 8)
    payload = b"k\0\0" + zlib.compress(bytes(BOMB_MIB * MIB))
    text = struct.pack(">I", len(payload)) + b"zTXt" + payload + struct.pack(">I", zlib.crc32(b"zTXt" + payload))
    return body[:33] + text + body[33:]


def unpacked(archive: Path) -> None:
    source = DatasetConfig(source=str(archive), source_max_size_bytes=LIMIT)
    with open_source(source, StorageConfig(uri="/nowhere")) as opened:
        list_source(opened, renames={})


def checked(data: bytes) -> AcceptedImage | RejectedImage:
    return check_image(data, key="image.png", max_pixels=LIMIT, max_file_size_bytes=LIMIT, transcode=True)


def read_as_config(folder: Path, text: str) -> None:
    path = folder / "config.yaml"
    path.write_text(text[:TEXT_BYTES])
    load_config(path)


def files_of_one_byte(folder: Path, count: int) -> Path:
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for number in range(count // 2):
            (folder / label / f"{number:06}.png").write_bytes(b"x")
    return folder


def members_of_one_byte(path: Path, count: int) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for number in range(count):
            opened.writestr(f"{'cat' if number % 2 else 'dog'}/{number:06}.png", b"x")
    return path


def ingested(source: Path, folder: Path) -> None:
    storage = StorageConfig(uri=str(folder / "storage"))
    ingest(config_of(source, storage), open_store(storage))


def bombs(folder: Path, count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names, and what would go off. Each is made before it is measured."""
    for make in (zeros_in_a_zip, zeros_in_a_tar, zeros_in_an_xz):
        archive = make(folder)
        yield make.__name__, lambda archive=archive: unpacked(archive)
    for name, data in {"pixels": png(60_000, 60_000), "text in a png": text_in_a_png()}.items():
        yield name, lambda data=data: checked(data)
    laughs = "a0: &a0 [l, l]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for name, text in {
        "aliases": laughs,
        "nested lists": "[" * TEXT_BYTES,
        "nested keys": "{a: " * TEXT_BYTES,
        "dashes": "- " * TEXT_BYTES,
        "many keys": "{" + ",".join(f"k{number}" for number in range(18_000)) + "}",
        "digits": "a: " + "9" * TEXT_BYTES,
        "sixties": "a: 1" + ":59" * TEXT_BYTES,
    }.items():
        yield name, lambda text=text: read_as_config(folder, text)
    source = files_of_one_byte(folder / "files", count)
    yield "tiny files", lambda: ingested(source, folder)
    archive = members_of_one_byte(folder / "members.zip", count)
    yield "tiny members", lambda: ingested(archive, folder)


def kept_mib(what: str) -> float:
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def main(folder: Path, count: int) -> None:
    parallel.IMAGES_PER_PROCESS = 10**9  # All in this process, whose memory is looked at.
    for name, go_off in bombs(folder, count):
        Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
        before = kept_mib("VmRSS")
        try:
            outcome = go_off()
            said = [type(outcome).__name__, getattr(outcome, "detail", "")]
        except TransferError as error:
            said = [type(error).__name__, error.message[:3000]]
        print(json.dumps([name, *said, kept_mib("VmHWM") - before]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
