"""A proxy for any TCP service on loopback whose connections can be cut, and that can be out of reach for a while."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class CuttingProxy:
    """Forwards bytes to `port`; `port` of its own is what clients connect to, on loopback or where `listening` is."""

    def __init__(self, port: int, listening: socket.socket | None = None) -> None:
        self._target = port
        self._connections: list[socket.socket] = []
        self._listening = listening or socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.away = False
        self.turned_away = 0
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def cut(self) -> int:
        """Cut all connections, and turn away new ones until `away` is False; how many were cut."""
        self.away = True
        cut = 0
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
                cut += 1
        return cut

    def close(self) -> None:
        """Cut what is open, and listen no more."""
        self.cut()
        # Closing alone does not wake the thread that accepts.
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listening, *self._connections):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                if self.away:
                    client.close()
                    self.turned_away += 1
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._connections += [client, server]
                self._begin(_forward, client, server)
                self._begin(_forward, server, client)

    def _begin(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
