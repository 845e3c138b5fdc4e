"""Real proxies on loopback that fail: for HTTP, told which requests fail and how; for TCP, whose connections break."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.session import Session

Manner = Literal[
    "status",  # answer with an HTTP status, without asking the service
    "reset",  # cut the connection before the service sees the request
    "lost response",  # cut the connection after the service has done the work
    "short body",  # send half of the answer's body, then close
    "cut body",  # send half of the answer's body, and a Content-Length that says so
    "flipped byte",  # change one byte of the answer's body
    "changed body",  # send what `change` makes of the answer's body
    "flipped upload",  # change one byte of the request's body
    "held",  # answer only when an event is set
    "stalled body",  # send half of the answer's body, and the rest only when an event is set
    "slow body",  # send the answer's body in twenty pieces, with a pause before each
    "no conditions",  # take If-None-Match away from the request
    "early conditions",  # look whether the name is taken, and a moment later write without asking again
    "refused in vain",  # take If-None-Match away, and answer 412 after the service has done the work
]

SIGNED = ("Content-MD5", "Content-Type", "X-Amz-Meta-Sha256")


@dataclass
class Fault:
    manner: Manner
    times: int
    status: int = 503
    code: str = "SlowDown"
    held_until: threading.Event | None = None
    change: Callable[[bytes], bytes] | None = None
    kill: Callable[[int], None] | None = None
    """Called, before a connection is cut, with the client's port."""
    matches: Callable[[str, str], bool] = field(default=lambda _method, _path: True)


class FaultProxy:
    """Forwards to `upstream` (http://host:port); `url` is its own address, `requests` what came by.

    `faults` counts the requests that were spoilt.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.faults = 0
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            faults = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def fail(self, manner: Manner, *, times: int = 1, **details) -> None:
        """Treat the next `times` requests (that `matches(method, path)` lets through) in this manner."""
        with self._lock:
            self._faults.append(Fault(manner, times, **details))

    def heal(self) -> None:
        with self._lock:
            self._faults.clear()

    def next_fault(self, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            self.headers.append(headers)
            for fault in self._faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.times -= 1
                    self.faults += 1
                    return fault
        return None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # An answer in two packets would wait 40 ms for an acknowledgement.
    faults: FaultProxy

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.faults.next_fault(self.command, self.path, dict(self.headers))
        manner = fault.manner if fault else None
        if fault and self._refuses(fault):
            return
        if manner == "held":
            fault.held_until.wait()
        if manner in {"no conditions", "early conditions", "refused in vain"}:
            del self.headers["If-None-Match"]
            self._sign_again(body)
        if manner == "flipped upload" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, answer = self._forward(body)
        if manner == "lost response":
            self._reset(fault)
            return
        if manner == "refused in vain":
            status, headers = 412, {}
        if manner == "short body":
            self.close_connection = True
        self._answer(status, *_spoilt(fault, headers, answer), fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - http.server's names

    def _refuses(self, fault: Fault) -> bool:
        """Whether the service does not see the request at all."""
        if fault.manner == "status":
            xml = f"<Error><Code>{fault.code}</Code><Message>on purpose</Message></Error>".encode()
            self._answer(fault.status, {"Content-Type": "application/xml", "Content-Length": str(len(xml))}, xml)
        elif fault.manner == "reset":
            self._reset(fault)
        elif fault.manner == "early conditions" and self._is_taken():
            self._answer(412, {}, b"")
        else:
            return False
        return True

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.faults.upstream.netloc, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            upstream.close()

    def _is_taken(self) -> bool:
        headers = self._signed("HEAD", b"").headers
        upstream = http.client.HTTPConnection(self.faults.upstream.netloc, timeout=30)
        with contextlib.closing(upstream):
            upstream.request("HEAD", self.path, headers={"Host": self.headers["Host"], **dict(headers.items())})
            taken = upstream.getresponse().status == 200
        time.sleep(0.05)  # Enough for others to come in between.
        return taken

    def _sign_again(self, body: bytes) -> None:
        # The signature covers the header that is gone: a real service refuses the rest of the request.
        for name, value in self._signed(self.command, body).headers.items():
            del self.headers[name]
            self.headers[name] = value

    def _signed(self, method: str, body: bytes) -> AWSRequest:
        request = AWSRequest(method, f"http://{self.headers['Host']}{self.path}", data=body)
        for name in SIGNED:
            if name in self.headers:
                request.headers[name] = self.headers[name]
        S3SigV4Auth(Session().get_credentials(), "s3", "us-east-1").add_auth(request)
        return request

    def _send(self, body: bytes, fault: Fault | None) -> None:
        if fault is not None and fault.manner == "stalled body":
            self.wfile.write(body[: len(body) // 2])
            fault.held_until.wait()
            self.close_connection = True
        elif fault is not None and fault.manner == "slow body":
            size = len(body) // 20 + 1
            for start in range(0, len(body), size):
                time.sleep(0.01)
                self.wfile.write(body[start : start + size])
        else:
            self.wfile.write(body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding"}:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # Who waited for too long has gone.
                self._send(body, fault)

    def _reset(self, fault: Fault) -> None:
        if fault.kill:
            fault.kill(self.client_address[1])
        # Closing with nothing left to linger for sends RST instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _spoilt(fault: Fault | None, headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
    """What the fault makes of an answer."""
    manner = fault.manner if fault else None
    if manner == "flipped byte" and body:
        return headers, bytes([body[0] ^ 1]) + body[1:]
    if manner == "short body":
        return headers, body[: len(body) // 2]
    if manner in {"cut body", "changed body"}:
        plausible = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        return plausible, body[: len(body) // 2] if manner == "cut body" else fault.change(body)
    return headers, body


class CuttingProxy:
    """Forwards bytes to `port`; `port` of its own is what clients connect to, on loopback or where `listening` is.

    `answered` counts the bytes that went back, by the client's address.
    """

    def __init__(self, port: int, listening: socket.socket | None = None) -> None:
        self._target = port
        self._connections: list[socket.socket] = []
        self._listening = listening or socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.away = False
        self.turned_away = 0
        self.answered: Counter[str] = Counter()
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
                client, (address, *_) = self._listening.accept()
                if self.away:
                    client.close()
                    self.turned_away += 1
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._connections += [client, server]
                self._begin(_forward, client, server, Counter(), "")
                self._begin(_forward, server, client, self.answered, address)

    def _begin(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()


def _forward(source: socket.socket, target: socket.socket, counts: Counter[str], address: str) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            counts[address] += len(data)
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
