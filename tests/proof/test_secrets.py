"""Secrets of the environment appear nowhere but in the environment of processes, where they have to be."""

from __future__ import annotations

import base64
import gzip
import io
import json
import secrets
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.clusters import RAY, running_head
from tests.conftest import emulator
from tests.digits import digits_config, write_some_digits
from tests.proof.figures import note
from transfer.config.reference import render
from transfer.storage import open_store

ROOT = Path(__file__).parents[2]
WEBHOOK = "WEBHOOK_OF_A_NIGHT"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(12).upper()}",
    "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24),
    "AWS_SESSION_TOKEN": secrets.token_hex(48),
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    # Nobody listens there, so the night has to say that it failed, and may not say where.
    WEBHOOK: f"http://127.0.0.1:9/services/{secrets.token_hex(20)}",
}


@pytest.fixture(scope="module")
def service():
    """Address of an S3 service that takes any credentials; they are in the environment of this process, too."""
    with pytest.MonkeyPatch.context() as environment, emulator() as url:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.delenv("RAY_AUTH_TOKEN")
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For what processes leave behind on a machine: the home and the temporary folder are in it."""
    folder = tmp_path_factory.mktemp("secrets")
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def head(service, folder):
    """A cluster whose nodes have the secrets in their environment, as whoever runs it puts them there."""
    with running_head(cpus=1, **SECRETS, HOME=str(folder / "home"), TMPDIR=str(folder / "tmp")) as environment:
        yield environment


def needles(secret: str) -> Iterator[bytes]:
    """The secret as text, in UTF-16, and within base64 wherever it begins there."""
    key = secret.rpartition("/")[2].encode()
    yield key
    yield key.decode().encode("utf-16-le")
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + key + b"\0\0")
        yield encoded[4:-4]


def opened(data: bytes) -> Iterator[bytes]:
    """The bytes, and what is compressed in them."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    elif data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                yield from opened(archive.read(member))
    elif data[:4] == b"PAR1":
        for column in pq.read_table(pa.BufferReader(data)).columns:
            yield from (repr(value).encode() for value in column.to_pylist())


def places_with(wanted: dict[str, list[bytes]], texts: dict[str, bytes]) -> set[tuple[str, str]]:
    """Which is where."""
    return {
        (name, place)
        for place, data in texts.items()
        for part in opened(data)
        for name, forms in wanted.items()
        if any(form in part for form in forms)
    }


def files_below(folder: Path) -> dict[str, bytes]:
    """All files that lie there, by path. Sockets and what is gone meanwhile have no bytes."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                found[str(path)] = path.read_bytes()
            except OSError:
                continue
    return found


def asked(head, *arguments):
    done = subprocess.run([RAY, *arguments], env=head, capture_output=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_secrets_of_the_environment_appear_nowhere_that_a_job_leaves_anything(head, service, folder):
    storage = {"uri": "s3://secrets/some/prefix", "endpoint_url": service}
    create_bucket(service)
    source = write_some_digits(folder / "images")
    config = digits_config(
        source,
        storage,
        phases=[{"unfreeze": 0, "epochs": 1, "learning_rate": 3e-3}],
        workers={"count": 1},
        nightly={"webhook_env": WEBHOOK},
        sweep={"space": {"phases.0.learning_rate": [1e-3, 1e-2]}, "search": "grid", "concurrency": 1},
    )
    (folder / "config.yaml").write_text(render(config))
    jobs = (f"nightly {folder}/config.yaml", f"sweep {folder}/config.yaml --set publish.enabled=false")
    job = " && ".join(f"python -m jobs.{each}" for each in jobs)
    submit = ["job", "submit", "--submission-id", "the-job", "--working-dir", str(ROOT)]
    submit += ["--runtime-env-json", json.dumps({"excludes": [".git", ".venv"]}), "--", "sh", "-c", job]
    log = asked(head, *submit)
    assert b"succeeded" in log, log[-5000:].decode()

    store = open_store(config.storage)
    places = {
        "log": {"ray job submit": log, "ray job logs": asked(head, "job", "logs", "the-job")},
        "job API": {"ray job list": asked(head, "job", "list"), "api": api(head)},
        "storage": {item.name: store.read(item.name) for item in store.list()},
        "Ray's session": files_below(Path(head["RAY_TMPDIR"])),
        "this machine": files_below(folder),
    }
    # That it looks there at all: what is no secret is found.
    for place, known in {
        "log": f"The webhook in {WEBHOOK} did not take the night",
        "job API": "the-job",
        "storage": WEBHOOK,
        "Ray's session": WEBHOOK,
        "this machine": WEBHOOK,
    }.items():
        assert places_with({"known": [known.encode()]}, places[place]), place
    wanted = {name: list(needles(secret)) for name, secret in SECRETS.items()}
    everything = {f"{place}: {name}": data for place, files in places.items() for name, data in files.items()}
    assert places_with(wanted, everything) == set()
    note(
        "planted secrets",
        trials=len(SECRETS),
        failures=0,
        files_looked_through=len(everything),
        mib_looked_through=round(sum(map(len, everything.values())) / 1024**2),
    )


def create_bucket(service):
    import boto3

    client = boto3.Session().client("s3", endpoint_url=service)
    client.create_bucket(Bucket="secrets")
    client.close()


def api(head):
    """What the dashboard says of jobs, tasks' logs and the cluster, as its pages ask for it."""
    import urllib.request

    answers = []
    for path in ("/api/jobs/", "/api/jobs/the-job", "/api/jobs/the-job/logs", "/nodes?view=summary", "/api/v0/jobs"):
        request = urllib.request.Request(  # noqa: S310 - on loopback
            head["RAY_API_SERVER_ADDRESS"] + path, headers={"Authorization": f"Bearer {head['RAY_AUTH_TOKEN']}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            answers.append(answer.read())
    return b"\n".join(answers)


@pytest.mark.parametrize("form", ["plain", "gzip", "zip", "parquet", "base64"])
def test_a_secret_would_be_found_in_whatever_form(form):
    secret = SECRETS["AWS_SECRET_ACCESS_KEY"]
    text = f"key={secret}".encode()
    if form == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside", text)
        data = buffer.getvalue()
    elif form == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": [text.decode()]}), sink, compression="zstd")
        data = sink.getvalue().to_pybytes()
    else:
        data = {"plain": bytes, "gzip": gzip.compress, "base64": base64.b64encode}[form](text)
    assert places_with({"it": list(needles(secret))}, {"here": data}) == {("it", "here")}
