"""A job on a Ray cluster: submitted so that a repeat is harmless, and followed until it ends.

On Ray's own JobSubmissionClient. Its `ray job submit` exits 0 when the job was stopped, loses the job's exit code, and
ends with the connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from transfer.config import load_document, parse_config
from transfer.errors import ClusterError, ConfigError
from transfer.local_paths import check_paths, values_of
from transfer.tuning.space import check_space
from transfer.working_tree import Package, pack

STOPPED = 20
"""Exit code when the job was stopped: by `ray job stop`, not by itself."""
PATIENCE_S = 600.0
"""How long a cluster may be out of reach while a job is followed."""
_QUIET_S = 120.0
_PAUSE_S = 1.0

_LOG = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Submission:
    """What became of a submitted job."""

    id: str
    found: bool
    """Whether the cluster had it before: it is not running a second time."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int
    """0: succeeded, or not waited for; STOPPED; else the job's own, 1 where it has none."""


def submit(
    job: str,
    config: Path,
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    arguments: Sequence[str] = (),
    id: str | None = None,  # noqa: A002 - what it is called on the command line
    root: Path = Path(),
    wait: bool = True,
    write: Callable[[str], object],
) -> Submission:
    """Run `python -m jobs.JOB CONFIG ARGUMENTS` on the cluster, with the working tree `root`; `write` gets its logs.

    Its submission id is made of the job, the configuration, the arguments, the code and `id`. A job of that id that
    is there or has succeeded is not submitted again; after one that failed or was stopped, the next attempt is.

    Raises ConfigError before anything is sent, and ClusterError when the cluster cannot be reached or refuses.
    """
    root = root.absolute()
    _check_job(job, root)
    document = load_document(config, [*overrides, *values_of("--set", arguments)])
    loaded = parse_config(document, name=str(config))
    if job == "sweep":
        check_space(loaded)
    check_paths(loaded, document, job=job, arguments=arguments, root=root)
    options = [part for override in overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory(prefix="transfer-submit-") as folder:
        package = pack(root, config, Path(folder) / "tree.zip")
        command = ["python", "-m", f"jobs.{job}", package.config, *options, *arguments]
        name = _submission_name(job, loaded.name, id, command, package)
        client = _connect(cluster_address(address))
        submission_id, found = _submit_once(client, name, shlex.join(command), package)
    _LOG.info("%s %s.", "Found" if found else "Submitted", submission_id)
    details = _follow(client, submission_id, write) if wait else _patiently(client.get_job_info, submission_id)
    status = str(details.status)
    return Submission(submission_id, found, status, details.message or "", _exit_code(status, details.driver_exit_code))


def cluster_address(option: str | None = None) -> str:
    """The cluster that is meant: the option, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, as for Ray itself.

    Raises ConfigError when there is none: a job is not sent to whatever may happen to run on this machine.
    """
    address = option or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "No cluster is named: neither --address nor RAY_ADDRESS is set.",
            advice="Give the address of the head's dashboard, as in --address http://HEAD:8265.",
        )
    return address


def _check_job(job: str, root: Path) -> None:
    known = sorted(path.stem for path in (root / "jobs").glob("*.py") if path.stem != "__init__")
    if job not in known:
        raise ConfigError(
            f"There is no job `{job}` in {root / 'jobs'}; found: {', '.join(known) or 'none'}.",
            advice="Name one of these, and the working tree with --working-dir where it is another folder.",
        )


def _submission_name(job: str, config: str, id: str | None, command: list[str], package: Package) -> str:  # noqa: A002
    content = json.dumps([command, id, package.sha256])
    parts = [job, config, *([id] if id else []), hashlib.sha256(content.encode()).hexdigest()[:12]]
    # It becomes part of URLs and of names of files.
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part) for part in parts)


def _connect(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # Ray puts its variables before the argument; here the option comes first.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(
            f"The cluster at {address} did not accept the token, or there was none.",
            advice="Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN to the cluster's own.",
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"No Ray cluster answers at {address}: {error}",
            advice="Give the address of the head's dashboard, as in http://HEAD:8265; is a tunnel or a proxy needed?",
        ) from error


def _submit_once(client: Any, name: str, command: str, package: Package) -> tuple[str, bool]:
    """The id of the job of this name that runs or has succeeded, and whether it was there before."""
    for _ in range(3):
        jobs = {job.submission_id: str(job.status) for job in _patiently(client.list_jobs)}
        attempt = 1
        while jobs.get(f"{name}-{attempt}") in {"FAILED", "STOPPED"}:
            attempt += 1
        submission_id = f"{name}-{attempt}"
        if submission_id in jobs:
            return submission_id, True
        try:
            client.submit_job(
                entrypoint=command, submission_id=submission_id, runtime_env={"working_dir": str(package.path)}
            )
        except (OSError, RuntimeError) as error:
            # Somebody else was first, or the answer was lost: the list says which, and who won is attached to.
            refused = error
            time.sleep(_PAUSE_S)
        else:
            _LOG.info("Shipped %d files, %.1f MiB.", package.files, package.size_bytes / 1024**2)
            return submission_id, False
    raise ClusterError(
        f"The cluster did not take the job {submission_id}: {refused}", advice="Repeat the command: that is safe."
    ) from refused


def _follow(client: Any, submission_id: str, write: Callable[[str], object]) -> Any:
    """Pass on the job's logs until it has ended; its details then. The connection may drop meanwhile."""
    log = _Log(client, submission_id, write)
    while True:
        complete = log.pass_on()
        details = _patiently(client.get_job_info, submission_id)
        if details.status.is_terminal() and (complete or log.dropped > 3):
            return details
        time.sleep(_PAUSE_S)


class _Log:
    """A job's log, each character of it passed on once, however often it is read again from its beginning."""

    def __init__(self, client: Any, submission_id: str, write: Callable[[str], object]) -> None:
        self.dropped = 0  # times in a row
        self._client, self._id, self._write = client, submission_id, write
        self._passed_on = 0

    def pass_on(self) -> bool:
        """Pass on what comes; whether it ended, and not the connection."""
        import aiohttp

        try:
            asyncio.run(self._read())
        except (OSError, RuntimeError, aiohttp.ClientError):
            self.dropped += 1
            return False
        self.dropped = 0
        return True

    async def _read(self) -> None:
        chunks = self._client.tail_job_logs(self._id)
        position = 0
        with suppress(StopAsyncIteration):
            while True:
                # A connection may die without a word, and cannot be told from a job without one: read anew then.
                chunk = await asyncio.wait_for(anext(chunks), _QUIET_S)
                new = chunk[max(0, self._passed_on - position) :]
                position += len(chunk)
                if new:
                    self._write(new)
                    self._passed_on = position


def _patiently(ask: Callable[..., Answer], *arguments: str) -> Answer:
    """What the cluster answers, asked again while it is out of reach. Raises ClusterError in the end."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_passes),
        wait=tenacity.wait_random_exponential(multiplier=_PAUSE_S, max=30),
        stop=tenacity.stop_after_delay(PATIENCE_S),
        reraise=True,
    )
    try:
        return retrying(ask, *arguments)
    except (OSError, RuntimeError) as error:
        raise ClusterError(
            f"The cluster does not answer any more: {error}",
            advice="A job goes on without this command; repeat it to follow the job again.",
        ) from error


def _passes(error: BaseException) -> bool:
    # Ray's client says RuntimeError to every bad status. 404: the head knows no such job, and waiting does not help.
    return isinstance(error, OSError) or (isinstance(error, RuntimeError) and "status code 404" not in str(error))


def _exit_code(status: str, of_job: int | None) -> int:
    if status == "STOPPED":
        return STOPPED
    # A signal's number comes as a negative one, and a job that never started has none.
    return max(of_job or 1, 1) if status == "FAILED" else 0
