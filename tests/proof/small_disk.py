"""A disk that is full soon."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SIZE_BYTES = 1024**2


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A file system of 1 MiB at `folder`; skips the test where it may not be mounted."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607 - as the mount above


def fill(folder: Path, *, leave_bytes: int) -> Path:
    """Put a file there that leaves so much room, in whole pages; returns its path."""
    ballast, system = folder / "ballast", os.statvfs(folder)
    ballast.write_bytes(b"0" * (system.f_bavail * system.f_frsize - leave_bytes))
    return ballast
