"""Ray on this machine: a local cluster, a head node with dashboard and token, jobs for it, its processes to kill."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from transfer.config.reference import render
from transfer.runtime.cluster import connect


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


@contextlib.contextmanager
def running_cluster():
    """Connect this process to a cluster. To start after the S3 service: the workers inherit its credentials."""
    import ray

    from tests.digits import ingested_digits

    # Where there is a cluster, images are ingested on it, by processes that each import TensorFlow first.
    ingested_digits()
    connect()
    yield
    ray.shutdown()


RAY = Path(sys.executable).with_name("ray")
AGENT_TIMEOUT_S = 60.0


@contextlib.contextmanager
def running_head(*, cpus: int = 3, **variables: str) -> Iterator[dict[str, str]]:
    """Yield the environment that reaches it; its nodes and jobs have `variables` in theirs.

    `RAY_TMPDIR` is where all of its files lie, which are left there.
    """
    # A port that was free may be taken when Ray's agent comes to it, and it goes on without its agent then.
    for _ in range(3):
        with _head(cpus, variables) as (environment, agent):
            if _answers(agent):
                yield environment
                return
    raise AssertionError("The agent of a Ray head, which starts its jobs, did not answer, three times.")


@contextlib.contextmanager
def _head(cpus: int, variables: dict[str, str]) -> Iterator[tuple[dict[str, str], int]]:
    # Ray's sockets live below its temp dir, and the names of sockets may not be long.
    temp = Path(tempfile.gettempdir()) / f"ray-{secrets.token_hex(4)}"
    dashboard, agent = _free_port(), _free_port()
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
    start += [f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    subprocess.run(start, env=environment, check=True, capture_output=True)
    try:
        yield environment, agent
    finally:
        # `ray stop` would end every cluster of this user; what belongs to this one names its folder.
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(temp).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def _answers(port: int) -> bool:
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=10)) as agent:
            agent.request("GET", "/api/local_raylet_healthz")
            return agent.getresponse().read() == b"success"
        time.sleep(0.5)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


ROOT = Path(__file__).parents[1]
FAILING = "import sys; sys.exit(4)"


def write_tree(folder: Path, **jobs: str) -> Path:
    """A working tree with these jobs, by name, one that fails, and a configuration."""
    from tests.digits import digits_config

    root = folder / "tree"
    (root / "jobs").mkdir(parents=True)
    for name, code in {**jobs, "failing": FAILING}.items():
        (root / "jobs" / f"{name}.py").write_text(code)
    # A job's id is made of its content, and the head is there for all tests.
    base = {"model": "MobileNetV2"}
    config = digits_config(folder, str(folder / "storage"), base=base, name=f"n{secrets.token_hex(4)}")
    (root / "config.yaml").write_text(render(config))
    return root


def command(tree: Path, job: str, *options: str) -> list[str]:
    """The command line that submits a job of the tree."""
    config = str(tree / "config.yaml")
    return [sys.executable, "-m", "transfer", "submit", job, config, "--working-dir", str(tree), "--json", *options]


def submit(head: dict[str, str], tree: Path, job: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Submit it and wait for its end; `head` is the environment that reaches the head."""
    return subprocess.run(command(tree, job, *options), env=head, cwd=ROOT, capture_output=True, text=True, check=False)
