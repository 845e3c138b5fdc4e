"""Submission of a job to a Ray cluster, safe to repeat, and following it until it ends.

It uses Ray's JobSubmissionClient. The command `ray job submit` exits 0 if the job was stopped, loses the exit code of
the job, and ends with the connection.
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

import jobs
from transfer.config import load_config, load_document
from transfer.errors import ClusterError, ConfigError, ExitCode
from transfer.runtime.numbers import many, size
from transfer.submission.local_paths import check_paths, values_of
from transfer.submission.working_tree import Package, pack
from transfer.tuning.space import check_space

PATIENCE_S = 600.0
"""Longest time without contact to the cluster while a job is followed."""
_START_S = 180.0  # longest wait for the agent of a head that has just started
_QUIET_S = 120.0
_PAUSE_S = 1.0

_LOG = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Submission:
    """The outcome of a submitted job."""

    id: str
    found: bool
    """Whether the cluster had the job before, so that it was not submitted again."""
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    exit_code: int
    """0: succeeded, or not waited for; 20: stopped; else the exit code of the job, or 1 if it has none."""


def submit(
    job: str,
    config: Path,
    *,
    address: str | None = None,
    overrides: Sequence[str] = (),
    arguments: Sequence[str] = (),
    id: str | None = None,  # noqa: A002 - what it is called on the command line
    root: Path | None = None,
    wait: bool = True,
    write: Callable[[str], object],
) -> Submission:
    """Run `python -m jobs.JOB CONFIG ARGUMENTS` on the cluster.

    Its submission id follows from the job, the configuration, the arguments, the code and `id`. If a job with this id
    runs or has succeeded, it is not submitted again. After a job that failed or was stopped, a new attempt is
    submitted.

    Args:
        job: Name of a module of `jobs`, for example `train`.
        config: Path of the configuration file.
        address: Address of the cluster, `http://HEAD:8265`. Default: see `cluster_address`.
        overrides: Changes of the configuration, `KEY=VALUE` each.
        arguments: Further arguments of the job.
        id: Part of the submission id; another `id` is another job.
        root: The working tree that is shipped. Default: the current folder if it has `jobs`, as a checkout has; else
            only the configuration is shipped, and the job is the one that is installed on the cluster.
        wait: Follow the job until it ends; else return once it is submitted.
        write: Called with each piece of the job's logs.

    Raises:
        ConfigError: Before anything is sent.
        ClusterError: The cluster cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory(prefix="transfer-submit-") as folder:
        root = tree_to_ship(root, empty=Path(folder) / "tree").resolve()
        _check_job(job, root)
        changes = [*overrides, *values_of("--set", arguments)]
        # The job's current folder is its copy of the tree.
        loaded = load_config(config, changes, folder=root)
        if job == "sweep":
            check_space(loaded)
        check_paths(loaded, load_document(config, changes), job=job, arguments=arguments, root=root)
        options = [part for override in overrides for part in ("--set", override)]
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
    """Address of the cluster: the option, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS, as for Ray itself.

    Raises ConfigError if there is none: a job is not sent to a cluster that happens to run on this machine.
    """
    address = option or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "No cluster is named: neither --address nor RAY_ADDRESS is set.",
            advice="Give the address of the head's dashboard, as in --address http://HEAD:8265.",
        )
    return address


def tree_to_ship(root: Path | None, *, empty: Path) -> Path:
    """The working tree to ship: `root`, else the current folder if it is a checkout, else the empty folder."""
    if root is not None:
        return root
    if Path("jobs").is_dir():
        return Path()
    empty.mkdir()
    return empty


def _check_job(job: str, root: Path) -> None:
    folder = root / "jobs" if (root / "jobs").is_dir() else Path(jobs.__path__[0])
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    if job not in known:
        raise ConfigError(
            f"There is no job `{job}` in {folder}; found: {', '.join(known) or 'none'}.",
            advice="Name one of these, and the working tree with --working-dir where it is another folder.",
        )


def _submission_name(job: str, config: str, id: str | None, command: list[str], package: Package) -> str:  # noqa: A002
    content = json.dumps([command, id, package.sha256])
    parts = [job, config, *([id] if id else []), hashlib.sha256(content.encode()).hexdigest()[:12]]
    # The name becomes part of URLs and file names.
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", part) for part in parts)


def _connect(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    # For Ray, its environment variables precede the argument; here the option comes first.
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
    """Submit the job unless one with this name runs or has succeeded. Returns its id, and whether it existed before."""
    started, attempts = time.monotonic(), 0
    while attempts < 3:
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
            # Another process was first, or the response was lost: list the jobs again, and follow the one that exists.
            refused = error
            # The head of a new cluster answers before it can start jobs.
            starting = "No available agent" in str(error) and time.monotonic() - started < _START_S
            attempts += not starting
            time.sleep(_PAUSE_S)
        else:
            _LOG.info("Shipped %s, %s.", many(package.files, "file"), size(package.size_bytes))
            return submission_id, False
    raise ClusterError(
        f"The cluster did not take the job {submission_id}: {refused}", advice="Repeat the command: that is safe."
    ) from refused


def _follow(client: Any, submission_id: str, write: Callable[[str], object]) -> Any:
    """Pass on the job's logs until it ends, and return its details. The connection may drop meanwhile."""
    log = _Log(client, submission_id, write)
    while True:
        complete = log.pass_on()
        details = _patiently(client.get_job_info, submission_id)
        if details.status.is_terminal() and (complete or log.dropped > 3):
            return details
        time.sleep(_PAUSE_S)


class _Log:
    """A job's log. Each character is passed on once, although the log is read again from its beginning."""

    def __init__(self, client: Any, submission_id: str, write: Callable[[str], object]) -> None:
        self.dropped = 0  # times in a row
        self._client, self._id, self._write = client, submission_id, write
        self._passed_on = 0

    def pass_on(self) -> bool:
        """Pass on new text. Returns whether the log ended, rather than the connection."""
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
                # A dead connection looks like a job without output, so the log is read again after a silence.
                chunk = await asyncio.wait_for(anext(chunks), _QUIET_S)
                new = chunk[max(0, self._passed_on - position) :]
                position += len(chunk)
                if new:
                    self._write(new)
                    self._passed_on = position


def _patiently(ask: Callable[..., Answer], *arguments: str) -> Answer:
    """Ask the cluster, with retries while it is out of reach. Raises ClusterError in the end."""
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
    # Ray's client raises RuntimeError for every HTTP error. 404: the head has no such job, and waiting does not help.
    return isinstance(error, OSError) or (isinstance(error, RuntimeError) and "status code 404" not in str(error))


def _exit_code(status: str, of_job: int | None) -> int:
    if status == "STOPPED":
        return ExitCode.JOB_STOPPED
    # After a signal the exit code is negative; a job that never started has none.
    return max(of_job or ExitCode.FAILURE, 1) if status == "FAILED" else ExitCode.DONE
