"""Requests to one bucket of an S3 service: transient errors are retried, others reported to the user."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import botocore.session
import tenacity
from botocore import UNSIGNED
from botocore import exceptions as botocore_errors
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.loaders import create_loader
from botocore.parsers import ResponseParserError

from transfer.errors import ArchivedObjectError, StorageError, UnsafeStorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Result = TypeVar("Result")
_log = logging.getLogger("transfer.storage")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter, bounded in attempts and in time.

    Waits are drawn between zero and a bound that starts at `first_wait_s`, doubles, and stays below `longest_wait_s`.
    No attempt begins later than `total_s` after the first. An attempt that receives no data for `silence_s` has failed.
    """

    attempts: int = 8
    first_wait_s: float = 0.25
    longest_wait_s: float = 15.0
    total_s: float = 120.0
    silence_s: float = 60.0

    def call(self, action: Callable[[], Result], *, what: str, is_transient: Callable[[BaseException], bool]) -> Result:
        """Call `action` and return its result. Transient errors are retried; the last one is raised if they persist."""
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts) | tenacity.stop_before_delay(self.total_s),
            wait=tenacity.wait_random_exponential(multiplier=self.first_wait_s, max=self.longest_wait_s),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=lambda state: _log.warning(
                "%s failed in attempt %d, trying again", what, state.attempt_number
            ),
            reraise=True,
        )
        return retrying(action)


# HTTP statuses that are due to the moment, not to the request. 409: another conditional write is in progress.
_TRANSIENT_STATUS = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_ERRORS = (
    botocore_errors.HTTPClientError,
    botocore_errors.IncompleteReadError,
    botocore_errors.ResponseStreamingError,
)
_NO_CREDENTIALS = (
    botocore_errors.NoCredentialsError,
    botocore_errors.PartialCredentialsError,
    botocore_errors.CredentialRetrievalError,
    botocore_errors.ProfileNotFound,
    botocore_errors.NoAuthTokenError,
    botocore_errors.TokenRetrievalError,
    botocore_errors.SSOError,
)
_CREDENTIALS_ADVICE = (
    "Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) or an instance role."
)
_ACCESS_ADVICE = (
    "The credentials need s3:GetObject, s3:PutObject and s3:ListBucket there (without the last, missing objects look "
    f"forbidden), and s3:DeleteObject for what may be removed. {_CREDENTIALS_ADVICE}"
)
_UNSIGNED_ADVICE = f"It is not public, and no credentials were found. {_CREDENTIALS_ADVICE}"
# Error codes of AWS and similar services for temporary credentials that have expired.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_EXPIRED_ADVICE = (
    "Temporary credentials ran out. Get new ones and run it again: what is stored already is reused. Those of a "
    "profile or an instance role are looked up again in mid-run; those in environment variables cannot change."
)
_REGION_ADVICE = "Set storage.region (or AWS_REGION) to the bucket's region."
_NAME_ADVICE = (
    "S3 takes names of at most 1,024 bytes in UTF-8, the prefix of storage.uri included: shorten that or the name."
)
_ADVICE_BY_CODE = {
    "NoSuchBucket": "Create the bucket, or correct its name and storage.endpoint_url.",
    "InvalidBucketName": "Correct the bucket in storage.uri.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    **dict.fromkeys(_EXPIRED, _EXPIRED_ADVICE),
    "AuthorizationHeaderMalformed": _REGION_ADVICE,
    "InvalidObjectName": _NAME_ADVICE,
    "KeyTooLongError": _NAME_ADVICE,
    "PermanentRedirect": _REGION_ADVICE,
    "IllegalLocationConstraintException": _REGION_ADVICE,
}
_UNAVAILABLE_ADVICE = "Check the network and the service's state, then run it again: what is stored already is reused."


class ShortBodyError(Exception):
    """The number of bytes received differs from that in the response's header."""


class GarbledAnswerError(Exception):
    """The response is not one of S3: it was damaged on its way, or another program answers at this address."""


def code_of(error: BaseException) -> str:
    """The service's name for the error, such as `NoSuchKey`; empty if there was no response."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """The HTTP status of the response; 0 if there was none."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, botocore_errors.ClientError):
        passing = status_of(error) in _TRANSIENT_STATUS or code_of(error) in _TRANSIENT_CODES
        return passing and not is_taken(error)
    if isinstance(error, botocore_errors.SSLError):
        # A refused certificate will be refused again. A connection cut during the handshake may succeed next time.
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, (*_TRANSIENT_ERRORS, ShortBodyError, GarbledAnswerError))


def is_taken(error: BaseException) -> bool:
    """Whether a conditional write was refused because an object has this name."""
    # The response to completing a multipart upload can contain an error although its status is 200.
    return status_of(error) == 412 or code_of(error) == "PreconditionFailed"


def is_expired(error: BaseException) -> bool:
    """Whether the credentials have expired."""
    return code_of(error) in _EXPIRED


def no_conditional_writes(uri: str) -> UnsafeStorageError:
    """The error for a service that does not implement conditional writes (HTTP 501)."""
    return UnsafeStorageError(
        f"{uri} does not implement conditional writes (If-None-Match: *), so two writers could overwrite each other.",
        advice="Use a service that does, or set storage.single_writer: true where only one job writes at a time.",
    )


def cause_of(error: BaseException) -> str:
    """The cause in a few words, without the service's own message, which may quote access keys."""
    if isinstance(error, botocore_errors.ClientError):
        return f"{code_of(error)} (HTTP {status_of(error)})"
    if isinstance(error, ShortBodyError | GarbledAnswerError):
        return str(error)
    return type(error).__name__


def advice_for(error: BaseException, *, is_signed: bool = True) -> str:
    """Advice for a user about an error. `is_signed`: whether the request was signed with credentials."""
    if isinstance(error, _NO_CREDENTIALS):
        return _CREDENTIALS_ADVICE
    if code_of(error) in _ADVICE_BY_CODE:
        return _ADVICE_BY_CODE[code_of(error)]
    if status_of(error) in {401, 403}:
        return _ACCESS_ADVICE if is_signed else _UNSIGNED_ADVICE
    if isinstance(error, botocore_errors.SSLError):
        return "Check the certificate of storage.endpoint_url; AWS_CA_BUNDLE names further authorities."
    if is_transient(error):
        return _UNAVAILABLE_ADVICE
    return "Check storage.uri, storage.endpoint_url and storage.region."


def _answer(error: BaseException) -> dict[str, Any]:
    return error.response if isinstance(error, botocore_errors.ClientError) else {}  # type: ignore[return-value]


# Operations that public buckets allow without credentials.
_READING = {"list", "look at", "read"}
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
        """Call `action` and return its result; transient errors are retried.

        `doing`: a verb for the error message. Raises StorageError; a response with an HTTP status among `expected` is
        raised as botocore's ClientError. A missing bucket always raises StorageError, although its status is 404, too.
        """
        if self._credentials is None and doing not in _READING:
            raise StorageError(
                f"Could not {doing} {name} in {self.uri} at {self.endpoint}: {NoCredentialsError.__name__}.",
                advice=advice_for(NoCredentialsError()),
            )
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
            if code_of(error) == "InvalidObjectState":
                raise ArchivedObjectError(
                    f"{name} in {self.uri} is archived, and cannot be read before it is restored ({cause_of(error)}).",
                    advice="Restore it, or copy it to another storage class.",
                ) from error
            tries = f" after {attempts} attempts in {time.monotonic() - started:.0f} s" if attempts > 1 else ""
            raise StorageError(
                f"Could not {doing} {name} in {self.uri} at {self.endpoint}{tries}: {cause_of(error)}.",
                advice=advice_for(error, is_signed=self._credentials is not None),
            ) from error

    def _has_other_credentials(self, *, than: S3Client) -> bool:
        """Look for credentials again, because those of the client `than` have expired. Whether there are new ones."""
        with self._renewing:
            if self.client is than:
                client, credentials = self._connect()
                if _frozen(credentials) == _frozen(self._credentials):
                    return False
                self.client, self._credentials = client, credentials
            return True


def _connect(endpoint_url: str | None, region: str | None, *, uri: str, silence_s: float) -> tuple[S3Client, Any]:
    """Make a client. Returns it and the source of its credentials."""
    config = Config(
        connect_timeout=10,
        read_timeout=silence_s,
        # Only our own retry policy: with two of them the numbers of attempts would multiply.
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=32,
        tcp_keepalive=True,
        # Some services refuse checksums in trailers (Ceph answers 411). Bodies are verified all the same: the signature
        # covers the SHA-256 of a sent body, and a received body is compared with the SHA-256 in its metadata.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"payload_signing_enabled": True},
    )
    try:
        # A new session looks for credentials again.
        session = botocore.session.get_session()
        session.register_component("data_loader", _descriptions())
        # Services other than AWS rarely check the region of a signature; most expect the default of AWS.
        region = region or session.get_config_variable("region") or ("us-east-1" if endpoint_url else None)
        credentials = session.get_credentials()
        if credentials is None:
            # Public buckets accept unsigned requests, but not requests with an empty signature.
            config = config.merge(Config(signature_version=UNSIGNED))
        client = session.create_client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
        return cast("S3Client", client), credentials
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"Could not connect to {uri}: {cause_of(error)}.", advice=advice_for(error)) from error


@cache
def _descriptions() -> Any:
    """The loader of botocore's description of S3, a megabyte of JSON that a process reads once."""
    return create_loader()


def _frozen(credentials: Any) -> Any:
    """The current access key, secret and token."""
    return credentials and credentials.get_frozen_credentials()
