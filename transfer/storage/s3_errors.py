"""What goes wrong between us and an S3 service: what passes, what does not, and what to tell the user."""

from __future__ import annotations

from typing import Any

from botocore import exceptions as botocore_errors

from transfer.errors import UnsafeStorageError

# Answers that describe a moment, not the request. 409 says that another conditional write is under way.
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
# What AWS and its likes answer to temporary credentials whose time is over.
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
    "NoSuchBucket": "Create the bucket, or correct storage.uri and storage.endpoint_url.",
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
    """Fewer or more bytes arrived than the answer's header promised."""


class GarbledAnswerError(Exception):
    """The answer does not read as one of S3: changed on its way, or of something else that answers there."""


def code_of(error: BaseException) -> str:
    """The service's name for the error, such as `NoSuchKey`; empty when there was no answer."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    """The HTTP status of the answer; 0 when there was none."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, botocore_errors.ClientError):
        passing = status_of(error) in _TRANSIENT_STATUS or code_of(error) in _TRANSIENT_CODES
        return passing and not is_taken(error)
    if isinstance(error, botocore_errors.SSLError):
        # A certificate that is refused stays refused; a connection cut within the handshake does not.
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, (*_TRANSIENT_ERRORS, ShortBodyError, GarbledAnswerError))


def is_taken(error: BaseException) -> bool:
    """Whether a conditional write was refused because the name has an object."""
    # The completion of a multipart upload can carry its error in an answer that began as a success.
    return status_of(error) == 412 or code_of(error) == "PreconditionFailed"


def is_expired(error: BaseException) -> bool:
    """Whether the credentials were right once and are not any more."""
    return code_of(error) in _EXPIRED


def no_conditional_writes(uri: str) -> UnsafeStorageError:
    """The error for a service that says that it does not know conditional writes (HTTP 501)."""
    return UnsafeStorageError(
        f"{uri} does not implement conditional writes (If-None-Match: *), so two writers could overwrite each other.",
        advice="Use a service that does, or set storage.single_writer: true where only one job writes at a time.",
    )


def cause_of(error: BaseException) -> str:
    """The cause in a few words. Not the service's own prose, which may quote access keys."""
    if isinstance(error, botocore_errors.ClientError):
        return f"{code_of(error)} (HTTP {status_of(error)})"
    if isinstance(error, ShortBodyError | GarbledAnswerError):
        return str(error)
    return type(error).__name__


def advice_for(error: BaseException) -> str:
    """What a user can do about the error."""
    if isinstance(error, _NO_CREDENTIALS):
        return _CREDENTIALS_ADVICE
    if code_of(error) in _ADVICE_BY_CODE:
        return _ADVICE_BY_CODE[code_of(error)]
    if status_of(error) in {401, 403}:
        return _ACCESS_ADVICE
    if isinstance(error, botocore_errors.SSLError):
        return "Check the certificate of storage.endpoint_url; AWS_CA_BUNDLE names further authorities."
    if is_transient(error):
        return _UNAVAILABLE_ADVICE
    return "Check storage.uri, storage.endpoint_url and storage.region."


def _answer(error: BaseException) -> dict[str, Any]:
    return error.response if isinstance(error, botocore_errors.ClientError) else {}  # type: ignore[return-value]
