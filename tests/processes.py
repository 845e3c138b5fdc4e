"""Finding the processes that Ray started, to kill them for real."""

import contextlib
import os
from pathlib import Path


def processes_titled(start: str) -> list[int]:
    """Ids of the processes whose title, as Ray sets it, begins so: of those alone that this process has started."""
    found = []
    for process in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(start.encode()):
                found.append(process)
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
