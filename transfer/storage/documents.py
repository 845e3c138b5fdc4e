"""Small JSON documents that carry their own SHA-256, and numbered logs of them that are only ever added to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, CorruptObjectError, ObjectNotFoundError
from transfer.storage.store import Store, StoredObject, content_sha256, sha256_hex

Model = TypeVar("Model", bound=BaseModel)


def put_content(store: Store, named: Callable[[str], str], data: bytes | Path) -> tuple[str, str]:
    """Put bytes or a file under a name that `named` derives from its SHA-256. Returns the name and the digest.

    It is no error if the object exists already. Raises StorageError.
    """
    sha256 = content_sha256(data)
    name = named(sha256)
    store.put(name, data)
    return name, sha256


def put_document(store: Store, name: str, document: dict[str, Any]) -> bool:
    """Put a document as canonical JSON with its digest. Returns and raises what `Store.put` does.

    Raises ValueError or TypeError for values that JSON cannot represent, NaN included.
    """
    return store.put(name, encode_document(document))


def now_utc() -> str:
    """The current time in UTC, to the second, as documents store it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_document(store: Store, name: str) -> dict[str, Any]:
    """Read the document with this name. Raises CorruptObjectError, ObjectNotFoundError, StorageError."""
    try:
        return decode_document(store.read(name), name=name, uri=store.uri)
    except CorruptObjectError:
        # The bytes may have been damaged on their way, so read them once more before the document counts as damaged.
        return decode_document(store.read(name), name=name, uri=store.uri)


def encode_document(document: dict[str, Any]) -> bytes:
    """Canonical JSON in UTF-8: `{"document": …, "sha256": …}`, keys sorted, a newline at the end."""
    # A round trip through JSON turns keys into strings first, so that they are sorted as strings.
    return _with_digest(json.loads(json.dumps(document, allow_nan=False)))


def decode_document(data: bytes, *, name: str, uri: str) -> dict[str, Any]:
    """Decode a document from canonical JSON. Raises CorruptObjectError if its encoding differs from `data`."""
    try:
        document = json.loads(data)["document"]
        if isinstance(document, dict) and _with_digest(document) == data:
            return document
    except (ValueError, TypeError, LookupError, RecursionError):
        pass  # The parser's message about a damaged document would not help a user.
    raise CorruptObjectError(
        f"{name} in {uri} is damaged: its {len(data)} bytes do not match the SHA-256 that they carry.",
        advice="Restore it from a backup; documents are never edited in place.",
    )


def as_model(kind: type[Model], document: dict[str, Any], *, uri: str) -> Model:
    """Validate a document as a model. Raises CorruptObjectError if its fields do not fit the model."""
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
    # Indenting the text is cheaper than encoding again, which takes a second for a manifest of 100,000 shards.
    nested = text.replace("\n", "\n ")
    return f'{{\n "document": {nested},\n "sha256": "{digest}"\n}}\n'.encode()


class Log:
    """The documents `<prefix>/00000001.json`, `00000002.json`, … of a store. The highest number is the current one."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = layout.check_name(prefix)

    def numbers(self) -> list[int]:
        """Numbers of all entries, in ascending order."""
        return self.numbers_among(self._store.list(f"{self._prefix}/"))

    def numbers_among(self, objects: Iterable[StoredObject]) -> list[int]:
        """Numbers of the entries in an existing listing, in ascending order."""
        numbers = (layout.entry_number_in(self._prefix, item.name) for item in objects)
        return sorted(number for number in numbers if number)

    def newest_number(self) -> int:
        """Number of the newest entry; 0 while the log is empty. Raises StorageError."""
        return self._store.newest_entry(self._prefix)

    def newest_first(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and documents of a log from which nothing is removed; each is read when the iterator reaches it.

        Raises CorruptObjectError, StorageError.
        """
        for number in range(self.newest_number(), 0, -1):
            try:
                document = self.read(number)
            except ObjectNotFoundError:
                continue
            yield number, document

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The highest number and its document; None while the log is empty. Raises CorruptObjectError, StorageError."""
        number = self.newest_number()
        while number:
            try:
                return number, self.read(number)
            except ObjectNotFoundError:
                # A run that finished removes earlier entries after it wrote a later one.
                before, number = number, self.newest_number()
                if number == before:
                    raise
        return None

    def read(self, number: int) -> dict[str, Any]:
        """Read the document with this number. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
        return read_document(self._store, self._name(number))

    def read_as(self, kind: type[Model], number: int) -> Model:
        """Read the entry with this number as a model. Raises what `read` and `as_model` raise."""
        return as_model(kind, self.read(number), uri=self._store.uri)

    def latest_as(self, kind: type[Model]) -> tuple[int, Model] | None:
        """The highest number and its entry as a model; None while the log is empty. Raises as `latest`."""
        latest = self.latest()
        return None if latest is None else (latest[0], as_model(kind, latest[1], uri=self._store.uri))

    def append(self, document: dict[str, Any], *, number: int | None = None) -> int:
        """Add an entry and return its number.

        With `number` the entry gets exactly this number. If the same document has it already, that is success; another
        document there raises AlreadyExistsError. Without `number` the entry gets the next free one. Raises
        StorageError.
        """
        if number is not None:
            put_document(self._store, self._name(number), document)
            return number
        number = self.newest_number() + 1
        while not self._add(number, document):
            number += 1
        return number

    def _add(self, number: int, document: dict[str, Any]) -> bool:
        """Whether this call added the entry. False if another writer did, even with the same document."""
        try:
            return put_document(self._store, self._name(number), document)
        except AlreadyExistsError:
            return False

    def _name(self, number: int) -> str:
        if number < 1:
            raise ValueError(f"number (={number}) must be 1 or more")
        return layout.entry(self._prefix, number)
