"""Small JSON documents that carry their own SHA-256, and numbered logs of them that are only ever added to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, CorruptObjectError, ObjectNotFoundError
from transfer.storage.store import Store, StoredObject, content_sha256, sha256_hex

Model = TypeVar("Model", bound=BaseModel)


def put_content(store: Store, named: Callable[[str], str], data: bytes | Path) -> tuple[str, str]:
    """Put bytes or a file under its own SHA-256. Returns its name, which `named` makes of the digest, and the digest.

    Content that is there already is not an error. Raises StorageError.
    """
    sha256 = content_sha256(data)
    name = named(sha256)
    store.put(name, data)
    return name, sha256


def put_document(store: Store, name: str, document: dict[str, Any]) -> bool:
    """Put a document as canonical JSON that carries its digest; answers and raises as `Store.put`.

    Raises ValueError or TypeError for what JSON cannot hold, NaN included.
    """
    return store.put(name, encode_document(document))


def now_utc() -> str:
    """The time as documents have it, to the second, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_document(store: Store, name: str) -> dict[str, Any]:
    """The document of that name. Raises CorruptObjectError, ObjectNotFoundError, StorageError."""
    try:
        return decode_document(store.read(name), name=name, uri=store.uri)
    except CorruptObjectError:
        # The transfer may have been at fault, so read it once more before saying that the document is.
        return decode_document(store.read(name), name=name, uri=store.uri)


def encode_document(document: dict[str, Any]) -> bytes:
    """Canonical JSON in UTF-8: `{"document": …, "sha256": …}`, keys sorted, a newline at the end."""
    # Through JSON once, so that keys sort as the strings they become.
    return _with_digest(json.loads(json.dumps(document, allow_nan=False)))


def decode_document(data: bytes, *, name: str, uri: str) -> dict[str, Any]:
    """The document in canonical JSON. Raises CorruptObjectError unless it encodes to the same bytes again."""
    try:
        document = json.loads(data)["document"]
        if isinstance(document, dict) and _with_digest(document) == data:
            return document
    except (ValueError, TypeError, LookupError, RecursionError):
        pass  # What a damaged document does to the parser tells a user nothing more.
    raise CorruptObjectError(
        f"{name} in {uri} is damaged: its {len(data)} bytes do not match the SHA-256 that they carry.",
        advice="Restore it from a backup; documents are never edited in place.",
    )


def as_model(kind: type[Model], document: dict[str, Any], *, uri: str) -> Model:
    """Give a document its type. Raises CorruptObjectError when it is whole, and yet none of that kind."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        places = [".".join(map(str, problem["loc"])) for problem in error.errors(include_url=False)[:3]]
        raise CorruptObjectError(
            f"A document in {uri} does not read as a {kind.__name__}: {error.error_count()} fields are missing or not "
            f"as expected, among them {', '.join(places)!r}.",
            advice="It may have been written by a newer release: update.",
        ) from error


def _with_digest(plain: dict[str, Any]) -> bytes:
    """Encode a document of JSON's own types with its digest."""
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    digest = sha256_hex(f"{text}\n".encode())
    # What JSON writes for it one level further in: encoding the manifest of 100,000 shards again would take a second.
    nested = text.replace("\n", "\n ")
    return f'{{\n "document": {nested},\n "sha256": "{digest}"\n}}\n'.encode()


_ENTRY = re.compile(r"([0-9]{8,})\.json")


class Log:
    """The documents `<prefix>/00000001.json`, `00000002.json`, … of a store. The highest number is the current one."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = layout.check_name(prefix)

    def numbers(self) -> list[int]:
        """All numbers that have an entry, rising."""
        return self.numbers_among(self._store.list(f"{self._prefix}/"))

    def numbers_among(self, objects: Iterable[StoredObject]) -> list[int]:
        """Those of which a listing that was made already has the entry, rising."""
        matches = (_ENTRY.fullmatch(item.name.removeprefix(f"{self._prefix}/")) for item in objects)
        return sorted(int(match.group(1)) for match in matches if match)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The highest number and its document; None while the log is empty. Raises CorruptObjectError, StorageError."""
        numbers = self.numbers()
        while numbers:
            try:
                return numbers[-1], self.read(numbers[-1])
            except ObjectNotFoundError:
                # A run that came to its end has removed it, after it wrote a later one.
                before, numbers = numbers, self.numbers()
                if numbers == before:
                    raise
        return None

    def read(self, number: int) -> dict[str, Any]:
        """The document of that number. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
        return read_document(self._store, self._name(number))

    def read_as(self, kind: type[Model], number: int) -> Model:
        """The entry of that number as a model. Raises what `read` and `as_model` raise."""
        return as_model(kind, self.read(number), uri=self._store.uri)

    def latest_as(self, kind: type[Model]) -> tuple[int, Model] | None:
        """The highest number and its entry as a model; None while the log is empty. Raises as `latest`."""
        latest = self.latest()
        return None if latest is None else (latest[0], as_model(kind, latest[1], uri=self._store.uri))

    def append(self, document: dict[str, Any], *, number: int | None = None) -> int:
        """Add an entry and return its number.

        With `number` it must become exactly this one: AlreadyExistsError when another document has it, success when
        the same document has. Without, it becomes the next one that is free. Raises StorageError.
        """
        if number is not None:
            put_document(self._store, self._name(number), document)
            return number
        numbers = self.numbers()
        number = numbers[-1] + 1 if numbers else 1
        while not self._add(number, document):
            number += 1
        return number

    def _add(self, number: int, document: dict[str, Any]) -> bool:
        """Whether this call added the entry, rather than another writer, even with the same document."""
        try:
            return put_document(self._store, self._name(number), document)
        except AlreadyExistsError:
            return False

    def _name(self, number: int) -> str:
        if number < 1:
            raise ValueError(f"number (={number}) must be 1 or more")
        return layout.entry(self._prefix, number)
