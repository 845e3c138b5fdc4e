"""A TCP relay on loopback that adds latency to what clients send, and counts what they receive.

    python -m scripts.bench.relay localhost:9000

It prints its port, and then answers lines of its standard input: `delay SECONDS` sets the latency, `count` prints the
bytes that clients received since it was last asked. A request of HTTP is one piece, so that it waits once; answers flow
freely. It is a process of its own, so that its work does not slow the clients down more than a network would.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PIECE_BYTES = 256 * 1024


class Relay:
    """A relay that runs as a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{self._ask('')}"

    def delay(self, seconds: float) -> None:
        """Let every request wait so long from now on."""
        self._ask(f"delay {seconds}")

    def received_bytes(self) -> int:
        """Bytes, with headers, that clients received since this was last asked."""
        return int(self._ask("count"))

    def _ask(self, line: str) -> str:
        if line:
            self._process.stdin.write(f"{line}\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        return self._process.stdout.readline().strip()  # type: ignore[union-attr]


@contextmanager
def relay_to(address: str) -> Iterator[Relay]:
    """Run a relay to `host:port` while the block lasts."""
    command = [sys.executable, "-m", "scripts.bench.relay", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Relay(process)
        finally:
            process.kill()


class _Traffic:
    delay_s = 0.0
    received_bytes = 0
    lock = threading.Lock()


def main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listening, (host, int(port))), daemon=True).start()
    print(listening.getsockname()[1], flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        with _Traffic.lock:
            if command == "delay":
                _Traffic.delay_s = float(arguments[0])
            print(_Traffic.received_bytes, flush=True)
            _Traffic.received_bytes = 0


def _accept(listening: socket.socket, target: tuple[str, int]) -> None:
    while True:
        client, _ = listening.accept()
        server = socket.create_connection(target)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_forward, args=(client, server), kwargs={"is_request": True}, daemon=True).start()
        threading.Thread(target=_forward, args=(server, client), kwargs={"is_request": False}, daemon=True).start()


def _forward(source: socket.socket, target: socket.socket, *, is_request: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(PIECE_BYTES):
            if is_request:
                time.sleep(_Traffic.delay_s)
            else:
                with _Traffic.lock:
                    _Traffic.received_bytes += len(data)
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
