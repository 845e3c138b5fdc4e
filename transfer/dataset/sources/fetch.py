"""Download of a file from a bucket or the web."""

from __future__ import annotations

import difflib
import urllib.error
import urllib.request
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import tenacity

from transfer.config import StorageConfig
from transfer.dataset.sources.base import key_of
from transfer.errors import DatasetError, ObjectNotFoundError
from transfer.storage import open_store

_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_NAMES_LOOKED_AT = 1000
_PIECE_SIZE_BYTES = 16 * 1024**2


def fetch(uri: str, target: Path, *, storage: StorageConfig, max_size_bytes: int) -> None:
    """Copy an `s3://`, `http://` or `https://` address into a file. Raises DatasetError or StorageError.

    `storage`: the S3 service. Files above `max_size_bytes` are refused.
    """
    if uri.startswith("s3://"):
        _fetch_object(uri, target, storage=storage, max_size_bytes=max_size_bytes)
    else:
        _fetch_web(uri, target, max_size_bytes=max_size_bytes)


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/folder/file` into `s3://bucket/folder` and `file`."""
    folder, _, name = uri.rpartition("/")
    return folder, name


def without_secrets(uri: str) -> str:
    """A web address without user, password, query and fragment, so that it can be shown and stored."""
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _fetch_object(uri: str, target: Path, *, storage: StorageConfig, max_size_bytes: int) -> None:
    folder, name = split_s3(uri)
    store = open_store(storage.model_copy(update={"uri": folder}))
    try:
        size_bytes = store.size(name)
    except ObjectNotFoundError as error:
        raise nothing_there(uri, storage) from error
    if size_bytes > max_size_bytes:
        raise _too_large(uri, max_size_bytes)
    store.download(name, target, size_bytes=size_bytes)


def _fetch_web(uri: str, target: Path, *, max_size_bytes: int) -> None:
    shown = without_secrets(uri)
    passing = (TimeoutError, ConnectionError, urllib.error.URLError, _CutShortError)
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=15),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, passing) and not _is_final(error)),
        reraise=True,
    )
    try:
        retrying(_download, uri, target, shown=shown, max_size_bytes=max_size_bytes)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise _not_found(shown) from None
        raise _failed(shown, f"the server answers {error.code} {error.reason}") from None
    except passing as error:
        raise _failed(shown, str(error)) from None


def _download(uri: str, target: Path, *, shown: str, max_size_bytes: int) -> None:
    try:
        # The scheme is http or https: open_source passes no other one.
        opened = urllib.request.urlopen(uri, timeout=_TIMEOUT_S)  # noqa: S310
    except urllib.error.HTTPError as error:
        # The error holds the connection.
        error.close()
        raise
    with opened as answer, target.open("wb") as file:
        promised = answer.headers.get("Content-Length")
        while piece := answer.read(_PIECE_SIZE_BYTES):
            file.write(piece)
            if file.tell() > max_size_bytes:
                raise _too_large(shown, max_size_bytes)
        if promised is not None and file.tell() != int(promised):
            raise _CutShortError(f"{file.tell():,} of {promised} bytes came")


class _CutShortError(Exception):
    """The connection ended before the end of the file."""


def _is_final(error: BaseException) -> bool:
    """Whether a retry would fail again."""
    return isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429


def _not_found(uri: str) -> DatasetError:
    return DatasetError(f"dataset.source is {uri}, and there is nothing there.", advice="Check the address.")


def nothing_there(uri: str, storage: StorageConfig) -> DatasetError:
    """The error for an `s3://` address without any object. Raises StorageError, also for a missing bucket."""
    return DatasetError(
        f"dataset.source is {uri}, and there is nothing there.{names_beside(uri, storage)}",
        advice="Check the address; upper and lower case differ.",
    )


def names_beside(uri: str, storage: StorageConfig) -> str:
    """A sentence with the names beside an `s3://` address without any object, the most similar names first.

    Raises StorageError for a missing bucket, for which a request for an object only says that the object is missing.
    """
    folder, name = split_s3(uri.rstrip("/"))
    if folder.endswith(":/"):
        return ""
    store = open_store(storage.model_copy(update={"uri": folder}))
    found = {
        item.name.partition("/")[0]
        for prefix in ("", name[:2])
        for item in islice(store.list(prefix), _NAMES_LOOKED_AT)
    }
    near = difflib.get_close_matches(name, sorted(found), n=3, cutoff=0.5) or sorted(found)[:3]
    return f" Beside it there are {', '.join(f'`{key_of(each)}`' for each in near)}." if near else ""


def _too_large(uri: str, max_size_bytes: int) -> DatasetError:
    return DatasetError(
        f"{uri} is larger than dataset.source_max_size_bytes, {max_size_bytes:,} bytes.",
        advice="Raise dataset.source_max_size_bytes if it is what you expect.",
    )


def _failed(uri: str, found: str) -> DatasetError:
    return DatasetError(f"{uri} could not be fetched: {found}.", advice="Check the address and the network.")
