"""One bucket of an S3 service: the client, and requests with retries and errors that name the object."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError

from transfer.errors import StorageError
from transfer.storage.retry import RetryPolicy
from transfer.storage.s3_errors import (
    GarbledAnswerError,
    ShortBodyError,
    advice_for,
    cause_of,
    code_of,
    is_expired,
    is_transient,
    status_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Result = TypeVar("Result")
_FAULTS = (ClientError, BotoCoreError, ShortBodyError, GarbledAnswerError)


class Bucket:
    """A bucket and the connections to it. Safe to use from several threads."""

    def __init__(
        self, name: str, prefix: str, *, endpoint_url: str | None, region: str | None, retry: RetryPolicy
    ) -> None:
        self.name = name
        self.uri = f"s3://{name}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry = retry
        self._connect = partial(_connect, endpoint_url, region, uri=self.uri, silence_s=retry.silence_s)
        self.client, self._credentials = self._connect()
        self._renewing = threading.Lock()
        self.endpoint = self.client.meta.endpoint_url

    def key(self, name: str) -> str:
        """The key of an object in the bucket."""
        return self._prefix + name

    def name_of(self, key: str) -> str:
        """The name of the object with that key."""
        return key.removeprefix(self._prefix)

    def call(self, doing: str, name: str, action: Callable[[], Result], *, expected: Collection[int] = ()) -> Result:
        """What `action` returns, repeated over passing faults.

        `doing` is a verb for the error message. Raises StorageError; answers with an HTTP status among `expected` are
        raised as botocore's ClientError. A missing bucket is never expected, though it answers 404 as an object does.
        """
        attempts, used = 0, self.client
        started = time.monotonic()

        def attempt() -> Result:
            nonlocal attempts, used
            attempts, used = attempts + 1, self.client
            try:
                return action()
            except (ResponseParserError, ValueError) as error:  # botocore does not count these among its own errors.
                raise GarbledAnswerError(f"an answer that is none of S3 ({type(error).__name__})") from error

        def may_pass(error: BaseException) -> bool:
            return is_transient(error) or (is_expired(error) and self._has_other_credentials(than=used))

        try:
            return self._retry.call(attempt, what=f"{doing} {name} in {self.uri}", is_transient=may_pass)
        except _FAULTS as error:
            if status_of(error) in expected and code_of(error) != "NoSuchBucket":
                raise
            tries = f" after {attempts} attempts in {time.monotonic() - started:.0f} s" if attempts > 1 else ""
            raise StorageError(
                f"Could not {doing} {name} in {self.uri} at {self.endpoint}{tries}: {cause_of(error)}.",
                advice=advice_for(error),
            ) from error

    def _has_other_credentials(self, *, than: S3Client) -> bool:
        """Look for credentials once more, for those of `than` have expired. Whether there are others now."""
        with self._renewing:
            if self.client is than:
                client, credentials = self._connect()
                if _frozen(credentials) == _frozen(self._credentials):
                    return False
                self.client, self._credentials = client, credentials
            return True


def _connect(endpoint_url: str | None, region: str | None, *, uri: str, silence_s: float) -> tuple[S3Client, Any]:
    """A client, and what it takes its credentials from."""
    config = Config(
        connect_timeout=10,
        read_timeout=silence_s,
        # One retry policy, ours: two on top of each other would multiply.
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=32,
        tcp_keepalive=True,
        # Checksums in trailers are refused by some services (Ceph answers 411). Bodies are guarded all the same: the
        # signature covers the SHA-256 of what is sent, and what is read is compared with the SHA-256 kept beside it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True},
    )
    try:
        # A session of its own, which looks for credentials anew.
        session = botocore.session.get_session()
        session.register_component("data_loader", _descriptions())
        # Services other than AWS rarely care which region signs; AWS's default is the one that they expect.
        region = region or session.get_config_variable("region") or ("us-east-1" if endpoint_url else None)
        client = session.create_client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
        return cast("S3Client", client), session.get_credentials()
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"Could not connect to {uri}: {cause_of(error)}.", advice=advice_for(error)) from error


@cache
def _descriptions() -> Any:
    """The loader of botocore's description of S3, which is a megabyte of JSON: read once in a process."""
    return create_loader()


def _frozen(credentials: Any) -> Any:
    """Access key, secret and token as they are now."""
    return credentials and credentials.get_frozen_credentials()
