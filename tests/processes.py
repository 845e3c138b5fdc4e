"""Finding the processes that Ray started, to kill them for real."""

import contextlib
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


def descendants(pid: int) -> list[int]:
    """Ids of the processes that a process started, and of those that they started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything.
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]
