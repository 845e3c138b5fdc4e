"""The real S3 server of scripts/s3_server: what it touches, and that nothing of it is left."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from scripts.s3_server.ceph_files import configuration
from scripts.s3_server.processes import PROGRAMS, S3ServerError, processes_of
from scripts.s3_server.server import DAEMONS, missing_daemons, start, stop

ROOT = Path(__file__).parents[3]
# Longest wait for something that takes seconds; not a claim about speed.
LONGEST_WAIT_S = 120
SYSTEM_FOLDERS = [Path(name) for name in ("/etc/ceph", "/var/lib/ceph", "/var/log/ceph", "/var/run/ceph", "/run/ceph")]


@pytest.fixture
def ceph(request):
    """For tests that start the server itself."""
    if request.config.getoption("--s3") != "ceph":
        pytest.skip("starts Ceph: make test-s3")


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "server"
    stop(tmp_path / "server")


def wait_until(happened):
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_its_programs_it_says_which_are_missing_and_how_to_get_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(S3ServerError) as caught:
        start(folder)
    for part in (*PROGRAMS, "apt-get install", "ceph-mon ceph-osd radosgw ceph-common"):
        assert part in str(caught.value)
    assert not folder.exists()


def test_a_folder_with_something_in_it_is_left_alone(folder):
    (folder / "log").mkdir(parents=True)
    (folder / "log" / "mine").write_text("mine")
    with pytest.raises(S3ServerError, match="not empty"):
        start(folder)
    assert stop(folder) == 0
    assert (folder / "log" / "mine").read_text() == "mine"


def test_its_configuration_names_no_path_outside_its_folder_and_no_address_but_loopback(folder):
    text = configuration(folder, cluster_id="id", monitor_address="v2:127.0.0.1:1234", gateway_port=5678)
    paths = re.findall(r"(?<![\w/$.])/[\w/$.-]+", text)
    assert len(paths) > 8
    assert all(Path(path).is_relative_to(folder) for path in paths)
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+", text)) == {"127.0.0.1"}


def test_stopping_ends_what_runs_for_this_folder_and_nothing_else(folder, tmp_path):
    def sleeper(of):
        return subprocess.Popen([sys.executable, "-c", "input()", "--conf", of / "ceph.conf"], stdin=subprocess.PIPE)

    with sleeper(folder) as ours, sleeper(tmp_path / "server-2") as anothers:
        wait_until(lambda: processes_of(folder) and processes_of(tmp_path / "server-2"))
        assert list(processes_of(folder)) == [ours.pid]
        assert stop(folder) == 1
        assert ours.wait() == -signal.SIGKILL
        assert anothers.poll() is None
        anothers.kill()


@pytest.mark.s3
def test_it_listens_on_loopback_only_and_leaves_nothing_behind(ceph, folder):
    before = [sorted(each.rglob("*")) for each in SYSTEM_FOLDERS]
    command = [sys.executable, "-m", "scripts.s3_server"]
    subprocess.run([*command, "start", "--folder", folder], cwd=ROOT, check=True)
    assert subprocess.run([*command, "status", "--folder", folder], cwd=ROOT, check=False).returncode == 0
    assert sorted(processes_of(folder).values()) == sorted(DAEMONS)
    addresses = [address for process in processes_of(folder) for address in listening(process)]
    assert len(addresses) >= len(DAEMONS)
    assert set(addresses) == {"127.0.0.1"}

    for name in ("env", "keyring"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    found = dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())
    session = boto3.Session(found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1")
    client = session.client("s3", endpoint_url=found["AWS_ENDPOINT_URL"])
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == [found["S3_BUCKET"]]
    client.close()

    subprocess.run([*command, "stop", "--folder", folder], cwd=ROOT, check=True)
    assert missing_daemons(folder) == list(DAEMONS)
    assert not folder.exists()
    assert [sorted(each.rglob("*")) for each in SYSTEM_FOLDERS] == before


@pytest.mark.s3
@pytest.mark.parametrize("how", ["start", "running"])
def test_nothing_runs_on_after_its_starter_was_killed(ceph, folder, how):
    script = {
        "start": "server.start(folder)",
        "running": "with server.running(folder): input()",
    }[how]
    program = f"import pathlib; from scripts.s3_server import server\nfolder = pathlib.Path({str(folder)!r})\n{script}"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE) as starter:
        monitor = folder / "run" / "mon.a.pid"
        wait_until(lambda: (monitor.exists() and monitor.read_text()) or starter.poll() is not None)
        starter.kill()
    if how == "start":
        assert stop(folder) >= 1
    wait_until(lambda: not processes_of(folder))


def listening(process):
    """Addresses of the TCP sockets on which a process listens."""
    links = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{process}/fd").iterdir()]
    lines = [line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in Path(f"/proc/{process}/net/tcp6").read_text().splitlines()[1:]]
    # The kernel's fields: 1 is the local address in host order, 3 the state (0A: listening), 9 the socket's number.
    return [readable(line[1]) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in links]


def readable(address):
    number = bytes.fromhex(address.split(":")[0])
    words = b"".join(number[start : start + 4][::-1] for start in range(0, len(number), 4))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)
