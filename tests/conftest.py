"""Fixtures that tests of several rooms share."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import subprocess
import sys
import uuid
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.layers import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_itemcollected,
    pytest_runtest_protocol,
    pytest_terminal_summary,
    pytest_xdist_make_scheduler,
)
from tests.proof.figures import note
from tests.proxies import FaultProxy
from transfer.cli.main import app
from transfer.config import StorageConfig
from transfer.storage import RetryPolicy, open_store


def pytest_addoption(parser):
    parser.addoption(
        "--s3",
        choices=list(S3_SERVICES),
        default="emulator",
        help="the S3 service of the tests: moto's emulator, one from the machine's Ceph packages, or the one that "
        "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name, where buckets are made and left",
    )


@pytest.fixture(scope="session")
def s3_server(request, tmp_path_factory):
    """Address of an S3 service in a process of its own, with credentials for it in the environment."""
    service = S3_SERVICES[request.config.getoption("--s3")]
    with service(tmp_path_factory.mktemp("s3")) as url:
        yield url


@contextlib.contextmanager
def emulated(_folder=None):
    """Address of moto's S3 emulator, which takes any key; one is in the environment."""
    with emulator() as url, only_credentials("ACCESSKEYOFTHETESTS", "secret-key-of-the-tests"):
        note("the S3 service", name=f"moto's emulator {importlib.metadata.version('moto')}")
        yield url


@contextlib.contextmanager
def ceph(folder):
    """Address of Ceph's S3 gateway, with its key in the environment."""
    from scripts.s3_server.processes import version
    from scripts.s3_server.server import running

    with running(folder) as server, only_credentials(server.access_key, server.secret_key):
        note("the S3 service", name=f"Ceph RADOS Gateway {version()}")
        yield server.endpoint_url


@contextlib.contextmanager
def of_the_environment(_folder):
    """Address of the service that the environment names, with its key."""
    url = os.environ["AWS_ENDPOINT_URL"]
    with only_credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]):
        note("the S3 service", name=f"that of {url}")
        yield url


S3_SERVICES = {"emulator": emulated, "ceph": ceph, "environment": of_the_environment}


@contextlib.contextmanager
def only_credentials(access_key, secret_key):
    """These credentials in the environment, and none of the user's anywhere."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", access_key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", "/dev/null")
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        yield


@contextlib.contextmanager
def emulator():
    """Address of moto's S3 emulator."""
    command = [sys.executable, str(Path(__file__).parent / "s3_emulator.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()  # It ends with its standard input.


@pytest.fixture
def s3_storage(s3_server, tmp_path):
    """A prefix in a fresh bucket, and a fresh folder for what is kept of it on this machine."""
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3_client(s3_server).create_bucket(Bucket=bucket)
    return StorageConfig(uri=f"s3://{bucket}/some/prefix", endpoint_url=s3_server, cache_folder=str(tmp_path / "cache"))


@functools.cache
def s3_client(url):
    """A client of the tests' own. Making one takes longer than many a test."""
    import boto3.session

    # Not `boto3.client`, whose session is that of the process, and remembers the first credentials that it ever found.
    return boto3.session.Session().client("s3", endpoint_url=url)


@pytest.fixture
def folder_storage(tmp_path):
    """A folder that does not exist yet."""
    return StorageConfig(uri=str(tmp_path / "storage"))


@pytest.fixture(params=["folder", "s3"])
def storage(request):
    """Each kind of storage in turn."""
    return request.getfixturevalue(f"{request.param}_storage")


@pytest.fixture
def store(storage):
    """An empty store of each kind in turn."""
    return open_store(storage)


@pytest.fixture
def fast_retry():
    """Retries as many as by default, without the waits."""
    return RetryPolicy(first_wait_s=0.001, longest_wait_s=0.01)


@pytest.fixture
def fault_proxy(s3_server):
    """A proxy before the S3 service that can be told to fail."""
    proxy = FaultProxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def faulty_storage(s3_storage, fault_proxy):
    """A prefix in a fresh bucket, reached through the fault proxy."""
    return s3_storage.model_copy(update={"endpoint_url": fault_proxy.url})


@pytest.fixture
def transfer(capfd):
    """Calls a command. What is logged does not come to stderr here."""

    def call(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(argument) for argument in arguments], prog_name="transfer")
        said = capfd.readouterr()
        return CompletedProcess(arguments, ended.value.code, said.out, said.err)

    return call
