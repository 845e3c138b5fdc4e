"""A Ray cluster of several machines on this one: a head without CPUs, and nodes that join and die.

Where the tests may make them (as root on Linux), every machine has network and process namespaces of its own: its own
address and ports, and it sees no process but its own. They are joined by a bridge that leads nowhere else, in a
namespace without a name. Elsewhere machines are groups of processes with addresses of their own on loopback.

A machine lasts as long as its standard input. What ends the tests, SIGKILL included, closes that, and the kernel ends
with a machine's first process all others in its namespace, and then the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from tests.clusters import descendants
from tests.proxies import CuttingProxy

RAY = Path(sys.executable).with_name("ray")
START_TIMEOUT_S = 120.0
OBJECT_STORE_BYTES = 100_000_000

# Waits until its network is there, then runs Ray until its standard input ends. On a busy machine Ray's start may take
# longer than the 30 s that Ray gives it, and the second time it is quicker.
_MACHINE = """
echo ready
read -r _
log=$1 temp=$2
shift 2
{ "$@" || "$@"; echo "ray start ended with $?"; } >"$log" 2>&1 &
cat
[ $$ -eq 1 ] || { trap : TERM; kill 0; wait; }
rm -rf "$temp"
"""
_ISOLATED = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_TRY = "ip link add name bridge0 type bridge && ip link add name veth0 type veth peer name veth1"


@cache
def may_isolate() -> bool:
    """Whether machines with networks of their own can be made here."""
    try:
        return subprocess.run([*_ISOLATED, "sh", "-c", _TRY], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Namespaces:
    """Machines that see each other over a bridge, and nothing else sees them."""

    def __init__(self) -> None:
        # Its first process is what holds the namespace of the bridge.
        self._hub = _wait_for_input(["unshare", "--net"], "echo ready; cat")
        self._relays: list[CuttingProxy] = []
        self.isolation = _ISOLATED
        self.inside = ["nsenter", f"--net=/proc/{self._hub.pid}/ns/net"]
        # Of its own accord it would take another address when a cable is pulled, and be out of reach for a minute.
        self._ip("link add name bridge0 address 02:00:0a:4d:00:fe type bridge")
        self._ip("address add 10.77.0.254/24 dev bridge0")
        for interface in ("lo", "bridge0"):
            self._ip(f"link set {interface} up")

    def address(self, number: int) -> str:
        """Of the machine of that number, from 1 on."""
        return f"10.77.0.{number}"

    def options(self, *, head: bool) -> list[str]:
        """Of `ray start`: ports are as on any machine."""
        return ["--port=6379", "--dashboard-port=8265"] if head else []

    def plug_in(self, process: subprocess.Popen[str], number: int) -> None:
        """Give a machine its cable."""
        self._ip(f"link add name veth{number} type veth peer name eth0 netns {process.pid}")
        self._ip(f"link set veth{number} master bridge0 up")
        inside = ["nsenter", f"--net=/proc/{process.pid}/ns/net"]
        _run([*inside, "ip", "address", "add", f"{self.address(number)}/24", "dev", "eth0"])
        for interface in ("lo", "eth0"):
            _run([*inside, "ip", "link", "set", interface, "up"])

    def reach(self, url: str) -> str:
        """The address under which machines reach a service of this host's loopback."""
        listening = _listen_in(self._hub.pid, "10.77.0.254")
        relay = CuttingProxy(urlsplit(url).port, listening)
        self._relays.append(relay)
        return f"http://10.77.0.254:{relay.port}"

    def answered(self, address: str) -> int:
        """Bytes that such services have sent to a machine."""
        return sum(relay.answered[address] for relay in self._relays)

    def close(self) -> None:
        """Take the network away."""
        for relay in self._relays:
            relay.close()
        _end(self._hub)

    def _ip(self, arguments: str) -> None:
        _run([*self.inside, "ip", *arguments.split()])


class Loopback:
    """Machines that share this host's network and processes, with addresses of their own."""

    def __init__(self) -> None:
        self.isolation: list[str] = []
        self.inside: list[str] = []
        # Other tests may have the usual ports, and another run of these tests the usual addresses.
        self._network = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(255)}"
        self._ports = {name: _free_port() for name in ("port", "dashboard-port")}

    def address(self, number: int) -> str:
        """Of the machine of that number, from 1 on."""
        return f"{self._network}.{number}"

    def options(self, *, head: bool) -> list[str]:
        """Of `ray start`: no port that another machine has."""
        ports = {"dashboard-agent-listen-port": _free_port(), "min-worker-port": 0, "max-worker-port": 0}
        return [f"--{name}={port}" for name, port in (ports | (self._ports if head else {})).items()]

    def plug_in(self, process: subprocess.Popen[str], number: int) -> None:
        """Nothing to do: loopback is there."""

    def reach(self, url: str) -> str:
        """The same address."""
        return url

    def close(self) -> None:
        """Nothing to do."""


class Node:
    """A machine with Ray on it."""

    def __init__(
        self, network: Namespaces | Loopback, number: int, options: list[str], environment: dict[str, str], folder: Path
    ) -> None:
        self.address = network.address(number)
        self._log = folder / f"node-{number}.log"
        # Not below `folder`: Ray's sockets live there, and the names of sockets may not be long.
        self._temp = tempfile.mkdtemp(prefix="ray-")
        command = [str(RAY), "start", "--block", f"--node-ip-address={self.address}", f"--temp-dir={self._temp}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", *options]
        # A disk of its own: what one machine has fetched, another one has not.
        environment = {**environment, "XDG_CACHE_HOME": str(folder / f"cache-{number}")}
        self._process = _wait_for_input(
            network.isolation, _MACHINE, str(self._log), self._temp, *command, environment=environment
        )
        network.plug_in(self._process, number)
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait_until_up(self) -> None:
        """Wait until Ray runs on it."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Ray runtime started" not in (said := self._log.read_text() if self._log.exists() else ""):
            assert "ray start ended" not in said, said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL for everything that runs on it, at once, as when a machine loses its power."""
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end()

    def end(self) -> None:
        """End what runs on it."""
        _end(self._process)
        shutil.rmtree(self._temp, ignore_errors=True)


class Nodes:
    """A cluster with token authentication: a head, on which only drivers run, and nodes of one CPU each."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._network = Namespaces() if may_isolate() else Loopback()
        self._stack.callback(self._network.close)
        self._started = 0
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            # Jobs are started as `python`, as on a node of a real cluster.
            "PATH": f"{RAY.parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # The head notices sooner that a node does not answer any more.
            "RAY_health_check_period_ms": "500",
            # Not on each node's own disk: making a list of fonts takes seconds.
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            # A node that is told to end need not wait for its work.
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        }
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        options = self._network.options(head=True)
        ports = dict(option.removeprefix("--").split("=") for option in options)
        head = self._network.address(1)
        self._address = f"{head}:{ports['port']}"
        self._environment["RAY_API_SERVER_ADDRESS"] = f"http://{head}:{ports['dashboard-port']}"
        with self._stack:
            self._start("--head", "--num-cpus=0", f"--dashboard-host={head}", *options).wait_until_up()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def join(self, count: int) -> None:
        """Have nodes join until there are so many."""
        joining = [
            self._start(f"--address={self._address}", "--num-cpus=1", *self._network.options(head=False))
            for _ in range(count - len(self.nodes))
        ]
        self.nodes += joining
        for node in joining:
            node.wait_until_up()

    def kill(self, node: Node) -> None:
        """Take a node away without a word."""
        self.nodes.remove(node)
        node.kill()

    def reach(self, url: str) -> str:
        """The address under which nodes reach a service of this host's loopback."""
        return self._network.reach(url)

    def answered(self, node: Node) -> int:
        """Bytes that such services have sent to a node; only where `may_isolate`."""
        assert isinstance(self._network, Namespaces)
        return self._network.answered(node.address)

    def command(self, command: list[str], **options) -> subprocess.Popen[str]:
        """Begin a command in the cluster's network, with its token. It is killed when the tests end."""
        command = ["setpriv", "--pdeathsig", "KILL", *self._network.inside, *command]
        return subprocess.Popen(command, env=self._environment, text=True, **options)

    def _start(self, *options: str) -> Node:
        self._started += 1
        node = Node(self._network, self._started, list(options), self._environment, self._folder)
        self._stack.callback(node.end)
        return node


def _wait_for_input(
    isolation: list[str], script: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a shell that is a machine's first process; it says when its namespaces are there."""
    process = subprocess.Popen(
        [*isolation, "sh", "-c", script, "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        # `kill 0` means this machine alone, and Ctrl-C the tests alone.
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.wait()
    process.stdout.close()


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listen_in(pid: int, host: str) -> socket.socket:
    """A socket that listens in the network of another process."""

    def listen() -> socket.socket:
        with Path(f"/proc/{pid}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_server((host, 0))

    # Only a thread goes there, and it ends there; its socket stays.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(listen).result()
