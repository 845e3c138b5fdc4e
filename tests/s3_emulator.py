"""An S3 service in a process of its own: moto on a loopback port that the kernel chooses, printed on standard output.

It ends when its standard input does, so it never outlives the tests that started it.
"""

from __future__ import annotations

import os
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # An answer in two packets would wait 40 ms for an acknowledgement.

    def log(self, *args, **kwargs):
        pass


class _OneWriteAtATime:
    """Makes moto's conditional writes atomic, as those of real services are: it looks and then writes, unlocked."""

    def __init__(self, app):
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] in {"GET", "HEAD"}:
            return self._app(environ, start_response)
        with self._lock:
            return list(self._app(environ, start_response))


def _end_with_parent():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1",
        0,
        _OneWriteAtATime(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=_Quiet,
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(server.server_port, flush=True)  # noqa: T201 - the parent reads it
    server.serve_forever()
