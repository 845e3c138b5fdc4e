"""An S3 emulator in this process that counts what is asked of it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

BUCKET = "scale"


@dataclass
class Traffic:
    """What went over the network."""

    requests: Counter[str] = field(default_factory=Counter)
    """By method and the folder of the object: `GET shards`. A page of a listing is `LIST`."""
    received_bytes: int = 0
    """By the client; bodies only."""
    sent_bytes: int = 0

    def __sub__(self, other: Traffic) -> Traffic:
        requests = Counter({kind: n - other.requests[kind] for kind, n in self.requests.items()})
        return Traffic(+requests, self.received_bytes - other.received_bytes, self.sent_bytes - other.sent_bytes)

    def copy(self) -> Traffic:
        """As it is now."""
        return Traffic(Counter(self.requests), self.received_bytes, self.sent_bytes)

    def plain(self) -> dict[str, Any]:
        """In JSON's own types."""
        return {
            "requests": dict(sorted(self.requests.items())),
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
        }


class Meter:
    """Stands before the emulator and counts."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._total = Traffic()

    @contextmanager
    def counted(self) -> Iterator[Traffic]:
        """Count what is asked while the block runs; the counts are there when it has ended."""
        before, found = self._total.copy(), Traffic()
        yield found
        during = self._total - before
        found.requests, found.received_bytes, found.sent_bytes = (
            during.requests,
            during.received_bytes,
            during.sent_bytes,
        )

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Pass a request on."""
        method = environ["REQUEST_METHOD"]
        # /<bucket>/<prefix of the storage>/<folder>/…
        folder = "".join(environ["PATH_INFO"].split("/")[3:4])
        is_listing = method == "GET" and "list-type" in parse_qs(environ.get("QUERY_STRING", ""))
        kind = "LIST" if is_listing else f"{method} {folder}"

        def answer(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            with self._lock:
                self._total.requests[kind] += 1
                self._total.received_bytes += 0 if method == "HEAD" else length
                self._total.sent_bytes += int(environ.get("CONTENT_LENGTH") or 0)
            return start_response(status, headers, *rest)

        return self._app(environ, answer)


@contextmanager
def counted_s3() -> Iterator[tuple[str, Meter]]:
    """Address of the emulator, which has a bucket, and its meter. Made-up credentials stand in the environment."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log(self, *_: Any) -> None:
            """Say nothing of each request."""

    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    meter = Meter(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, meter, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket=BUCKET)
        yield url, meter
    finally:
        server.shutdown()
        thread.join()
