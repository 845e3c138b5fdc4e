"""Starting programs for one folder, and finding them again, whoever started them and however that ended."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from transfer.errors import TransferError

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
INSTALL = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"
_LOG_BYTES = 2000
# The kernel ends what runs under it when the thread that started it ends, also by SIGKILL.
_LEASH = ("setpriv", "--pdeathsig", "KILL", "--")
# Long enough for a machine under load; each step takes one to three seconds on an idle one.
_TOOL_TIMEOUT_S = 120


class S3ServerError(TransferError):
    """The S3 server could not be started or stopped."""

    exit_code = 3


def require_programs() -> None:
    """Raises S3ServerError, with the command that installs them, unless all of Ceph's programs are there."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise S3ServerError(
            f"The S3 server needs Ceph's programs, and {', '.join(missing)} cannot be found.",
            advice=f"On Debian and Ubuntu, as root: {INSTALL} (or bash scripts/s3_server/install.sh).",
        )


def version() -> str:
    """Of Ceph's programs, such as 16.2.15. Raises S3ServerError where they are missing."""
    require_programs()
    said = subprocess.run(["radosgw", "--version"], capture_output=True, check=True, text=True).stdout  # noqa: S607
    return said.split()[2]


def run_tool(folder: Path, *command: str) -> str:
    """What one of Ceph's tools prints. Raises S3ServerError with the end of what it complained about."""
    try:
        done = subprocess.run(
            [*_LEASH, *_with_configuration(folder, command)],
            capture_output=True,
            check=False,
            cwd=folder,
            env=_environment(folder),
            text=True,
            timeout=_TOOL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise S3ServerError(
            f"`{' '.join(command[:3])}` did not end within {_TOOL_TIMEOUT_S} s.{ends_of_logs(folder)}",
            advice="Look at the logs, and at the machine's load and memory.",
        ) from error
    if done.returncode != 0:
        raise S3ServerError(
            f"`{' '.join(command[:3])}` ended with {done.returncode}: {done.stderr[-_LOG_BYTES:].strip()}.",
            advice="Look at the logs in the folder.",
        )
    return done.stdout


def start_daemon(folder: Path, *command: str, ends_with_starter: bool) -> subprocess.Popen[bytes]:
    """Start a program that stays in the foreground, in a session of its own, so that no terminal's Ctrl-C ends it.

    `ends_with_starter`: the kernel kills it when the thread that started it ends.
    """
    leash = _LEASH if ends_with_starter else ()
    with (folder / "log" / f"{command[0]}.out").open("ab") as output:
        return subprocess.Popen(
            [*leash, *_with_configuration(folder, command)],
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def processes_of(folder: Path) -> dict[int, str]:
    """Process ids and program names of all that runs for this folder.

    Known by its configuration file among the arguments. A file of process ids would miss what was started just before
    the starter was killed, and could name a stranger that has the number by now.
    """
    wanted = str(folder / "ceph.conf").encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                program = (entry / "comm").read_text().strip()
            except OSError:
                continue  # It has ended since.
            if (b"--conf", wanted) in itertools.pairwise(arguments):
                found[int(entry.name)] = program
    return found


def kill_all(folder: Path, *, timeout_s: float = 30.0) -> int:
    """Kill all that runs for this folder; how many there were. Nothing of it is worth an orderly end.

    Raises S3ServerError when something is left after `timeout_s`, PermissionError for another user's processes.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while running := processes_of(folder):
        if time.monotonic() > deadline:
            raise S3ServerError(
                f"{', '.join(f'{name} ({pid})' for pid, name in running.items())} did not end within {timeout_s:.0f} s "
                "of being killed.",
                advice="They wait for the kernel: look at the disk.",
            )
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.05)
    return len(killed)


def ends_of_logs(folder: Path) -> str:
    """The last lines of what the programs of this folder wrote, for an error's message."""
    ends = []
    for path in sorted((folder / "log").glob("*")):
        text = path.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
        if text:
            ends.append(f"\n--- {path}\n{text}")
    return "".join(ends)


def _with_configuration(folder: Path, command: Sequence[str]) -> list[str]:
    if command[0] == "monmaptool":  # Takes no configuration.
        return list(command)
    return [command[0], "--conf", str(folder / "ceph.conf"), *command[1:]]


def _environment(folder: Path) -> dict[str, str]:
    # Nothing of ours: neither credentials nor a Python environment, which Ceph's own Python tools would stumble over.
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LANG": "C.UTF-8", "TMPDIR": str(folder)}
