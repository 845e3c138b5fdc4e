"""A large object read over the network in ranges: as a seekable file, or whole into a local one."""

# ruff: noqa: D102 - io.RawIOBase documents the methods.
from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Small reads, as a file's header and footer cause them, are served from one larger request.
_READ_AHEAD_BYTES = 256 * 1024
_PART_BYTES = 8 * 1024**2
_PARTS_AT_ONCE = 4


class RangeReader(io.RawIOBase):
    """Reads `size` bytes through `fetch(start, length)`, which gives exactly the bytes asked for."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._position = 0
        self._window_start = 0
        self._window = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        wanted = max(min(len(target), self._size - self._position), 0)
        if wanted == 0:
            return 0
        # All of it at once: Arrow takes a short read for the end of the file.
        target[:wanted] = self._bytes(self._position, wanted)
        self._position += wanted
        return wanted

    def _bytes(self, start: int, length: int) -> bytes:
        if length >= _READ_AHEAD_BYTES:
            return self._fetch(start, length)
        offset = start - self._window_start
        if offset < 0 or offset + length > len(self._window):
            # A footer is read from its end backwards, so the window also reaches back where the end is near.
            self._window_start = max(min(start, self._size - _READ_AHEAD_BYTES), 0)
            self._window = self._fetch(self._window_start, min(_READ_AHEAD_BYTES, self._size - self._window_start))
            offset = start - self._window_start
        return self._window[offset : offset + length]


def fetch_to_file(fetch: Callable[[int, int], bytes], size: int, path: Path) -> Path:
    """Write the `size` bytes that `fetch(start, length)` gives to a file; memory holds a few parts of them.

    Raises what `fetch` raises, and OSError.
    """
    path.write_bytes(b"")

    def copy(start: int) -> None:
        part = fetch(start, min(_PART_BYTES, size - start))
        with path.open("r+b") as file:
            file.seek(start)
            file.write(part)

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for _ in pool.map(copy, range(0, size, _PART_BYTES)):
            pass
    return path
