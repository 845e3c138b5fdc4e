"""A second machine for the cluster that the tests share, and its sudden end."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

from tests.clusters import descendants

LONGEST_S = 120


class AnotherNode:
    """A node with so many CPUs, which is a raylet beside the cluster's own."""

    def __init__(self, cpus: float) -> None:
        before = ray.cluster_resources()["CPU"]
        # In the usual folder the address of this cluster would stay behind, and the next `ray.init` go there. Nor is it
        # a folder of the tests: sockets live in it, whose names may not be long.
        self._temp = tempfile.mkdtemp(prefix="ray-")
        command = [Path(sys.executable).with_name("ray"), "start", "--block", "--disable-usage-stats"]
        command += [f"--address={ray.get_runtime_context().gcs_address}", f"--num-cpus={math.ceil(cpus)}"]
        command += [f"--dashboard-agent-listen-port={_free_port()}", "--object-store-memory=100000000"]
        command += [f"--temp-dir={self._temp}"]
        self._process = subprocess.Popen(
            command, env={**os.environ, "RAY_AUTH_MODE": "token"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + LONGEST_S
        while ray.cluster_resources()["CPU"] == before:
            assert self._process.poll() is None, "the node ended"
            assert time.monotonic() < deadline, "the node does not come up"
            time.sleep(0.1)
        # Ray Train asks this actor what there is, and it looks every 20 s; asked so, it looks at once.
        ray.get(get_or_create_autoscaling_coordinator().get_reserved_resources.remote("the tests", recompute=True))

    def kill(self) -> None:
        """SIGKILL for all of its processes, as when a machine loses its power."""
        for process in (self._process.pid, *descendants(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._temp, ignore_errors=True)


@contextlib.contextmanager
def another_node(cpus: float) -> Iterator[AnotherNode]:
    """A node that is gone in the end, if not before."""
    node = AnotherNode(cpus)
    try:
        yield node
    finally:
        node.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
