"""An S3 service in a process of its own: moto on a loopback port that the kernel chooses, printed on standard output.

It ends when its standard input does, so it never outlives the tests that started it.
"""

from __future__ import annotations

import hashlib
import io
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


class _StricterThanMoto:
    """Does two things as real services do and moto does not.

    Conditional writes are atomic: moto looks and then writes, unlocked. A body is refused that is not the one whose
    SHA-256 was signed.
    """

    def __init__(self, app):
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] in {"GET", "HEAD"}:
            return self._app(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        signed = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "")
        if len(signed) == 64 and signed != hashlib.sha256(body).hexdigest():
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            return [b"<Error><Code>XAmzContentSHA256Mismatch</Code></Error>"]
        with self._lock:
            return list(self._app(environ | {"wsgi.input": io.BytesIO(body)}, start_response))


def _end_with_parent():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1",
        0,
        _StricterThanMoto(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=_Quiet,
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(server.server_port, flush=True)  # noqa: T201 - the parent reads it
    server.serve_forever()
