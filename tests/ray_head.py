"""A Ray head node of its own, with dashboard and token."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

RAY = Path(sys.executable).with_name("ray")


@contextlib.contextmanager
def running_head(*, cpus: int = 3, **variables: str) -> Iterator[dict[str, str]]:
    """Yield the environment that reaches it; its nodes and jobs have `variables` in theirs.

    `RAY_TMPDIR` is where all of its files lie, which are left there.
    """
    # Ray's sockets live below its temp dir, and the names of sockets may not be long.
    temp = Path(tempfile.gettempdir()) / f"ray-{secrets.token_hex(4)}"
    dashboard = _free_port()
    environment = {
        **os.environ,
        # Jobs are started as `python`, as on a node of a real cluster.
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(temp),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        **variables,
    }
    environment.pop("RAY_ADDRESS", None)
    start = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={_free_port()}", f"--num-cpus={cpus}"]
    start += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={temp}"]
    # Another cluster of these tests, on the same address, may have the agent's usual port.
    start += [f"--dashboard-agent-listen-port={_free_port()}", "--disable-usage-stats"]
    subprocess.run(start, env=environment, check=True, capture_output=True)
    try:
        yield environment
    finally:
        # `ray stop` would end every cluster of this user; what belongs to this one names its folder.
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(temp).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
