"""A real S3 server on loopback: Ceph's RADOS Gateway over a cluster of one machine that keeps objects in memory.

Everything of it lies in one folder: configuration, keys, logs. `env` there has the address and the credentials, which
are new at each start.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from scripts.s3_server.ceph_files import ADMIN, GATEWAY, configuration, keyring
from scripts.s3_server.processes import (
    S3ServerError,
    ends_of_logs,
    kill_all,
    processes_of,
    require_programs,
    run_tool,
    start_daemon,
)

BUCKET = "transfer"
DAEMONS = ("ceph-mon", "ceph-osd", "radosgw")
_FOLDERS = ("log", "run", "crash", "mon", "osd", "rgw")
_FILES = ("keyring", "monmap", "env")
_READY_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where the server is and what opens it."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)
    daemons: list[Popen[bytes]] = field(repr=False, compare=False)
    """Children of the process that started it."""

    def environment(self) -> dict[str, str]:
        """The environment variables with which any S3 client finds it, and `S3_BUCKET`, a bucket that is there."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "S3_BUCKET": BUCKET,
        }


def start(folder: Path, *, port: int = 0, ends_with_starter: bool = False) -> Server:
    """Start a server in `folder`, which must be empty or not there, and answer when a bucket has been made.

    `port` of the S3 service; 0: one that is free. `ends_with_starter`: the server is killed when this thread ends.
    Takes about 15 seconds. Raises S3ServerError; then nothing is left running, and the logs stay.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise S3ServerError(
            f"{folder} is not empty.",
            advice="A server that was started there ends with `python -m scripts.s3_server stop`, which empties it.",
        )
    if any(character in str(folder) for character in "#;=[]$\"' \n"):
        raise S3ServerError(f"Ceph cannot read the path {str(folder)!r}.", advice="Name a folder of plain letters.")
    require_programs()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    daemons: list[Popen[bytes]] = []
    try:
        return _start(folder, port or _free_port(), daemons, ends_with_starter=ends_with_starter)
    except BaseException:
        kill_all(folder)
        _reap(daemons)
        raise


def stop(folder: Path) -> int:
    """End the server of this folder and remove its files; how many processes were ended.

    Also what a killed or failed start left. Files that are not the server's stay. Raises S3ServerError.
    """
    folder = folder.resolve()
    ended = kill_all(folder)
    if not _is_ours(folder):
        return ended
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    (folder / "ceph.conf").unlink()
    with contextlib.suppress(OSError):  # Not there, or other files are in it.
        folder.rmdir()
    return ended


def missing_daemons(folder: Path) -> list[str]:
    """Which of the server's programs do not run for this folder."""
    running = set(processes_of(folder.resolve()).values())
    return [name for name in DAEMONS if name not in running]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """A server for as long as the block lasts, or its process, however that ends."""
    server = start(folder, ends_with_starter=True)
    try:
        yield server
    finally:
        stop(folder)
        _reap(server.daemons)


def _start(folder: Path, port: int, daemons: list[Popen[bytes]], *, ends_with_starter: bool) -> Server:
    cluster_id, osd_id = str(uuid.uuid4()), str(uuid.uuid4())
    monitor = f"v2:127.0.0.1:{_free_port()}"
    (folder / "ceph.conf").write_text(
        configuration(folder, cluster_id=cluster_id, monitor_address=monitor, gateway_port=port)
    )
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700)
    _write_secret(folder / "keyring", keyring())

    def daemon(*command: str) -> None:
        daemons.append(start_daemon(folder, *command, "--foreground", ends_with_starter=ends_with_starter))

    monmap = str(folder / "monmap")
    run_tool(folder, "monmaptool", "--create", "--addv", "a", f"[{monitor}]", "--fsid", cluster_id, monmap)
    run_tool(folder, "ceph-mon", "--mkfs", "--id", "a", "--monmap", monmap, "--keyring", str(folder / "keyring"))
    daemon("ceph-mon", "--id", "a")
    # Waits until the monitor answers.
    run_tool(folder, "ceph", "--name", ADMIN, "--connect-timeout", "60", "osd", "new", osd_id)
    run_tool(folder, "ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", osd_id)
    daemon("ceph-osd", "--id", "0")
    # Waits until objects can be stored. The keys are Ceph's own: as arguments they would show in the list of processes.
    made = run_tool(
        folder, "radosgw-admin", "--name", ADMIN, "user", "create", "--uid", "transfer", "--display-name", "transfer"
    )
    keys = json.loads(made)["keys"][0]
    daemon("radosgw", "--name", GATEWAY)
    server = Server(f"http://127.0.0.1:{port}", keys["access_key"], keys["secret_key"], daemons)
    _make_bucket(folder, server)
    _write_secret(folder / "env", "".join(f"{name}={value}\n" for name, value in server.environment().items()))
    return server


def _make_bucket(folder: Path, server: Server) -> None:
    """Make the bucket as soon as the gateway answers."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session(server.access_key, server.secret_key, region_name="us-east-1").client(
        "s3", endpoint_url=server.endpoint_url, config=Config(retries={"total_max_attempts": 1}, connect_timeout=5)
    )
    deadline = time.monotonic() + _READY_TIMEOUT_S
    with contextlib.closing(client):
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
            except (BotoCoreError, ClientError) as error:
                if any(daemon.poll() is not None for daemon in server.daemons) or time.monotonic() > deadline:
                    raise S3ServerError(
                        f"The S3 gateway does not answer at {server.endpoint_url}: {error}.{ends_of_logs(folder)}",
                        advice=f"The logs are in {folder / 'log'}.",
                    ) from error
                time.sleep(0.1)
            else:
                return


def _is_ours(folder: Path) -> bool:
    """Whether a server was started here: `stop` in the wrong folder must not empty that."""
    path = folder / "ceph.conf"
    return path.exists() and f"keyring = {folder}/keyring\n" in path.read_text()


def _reap(daemons: list[Popen[bytes]]) -> None:
    for daemon in daemons:
        daemon.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_secret(path: Path, text: str) -> None:
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)
