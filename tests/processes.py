"""Finding the processes that Ray started, to kill them for real."""

from collections.abc import Callable
from pathlib import Path


def processes_titled(is_wanted: Callable[[bytes], bool]) -> list[int]:
    """Ids of the processes whose title, as Ray sets it, is wanted."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if is_wanted(title):
                found.append(int(entry.name))
    return sorted(found)
