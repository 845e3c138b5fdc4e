"""Small JSON documents that carry their own SHA-256, so that any changed byte is noticed when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from transfer.errors import CorruptObjectError
from transfer.storage.store import Store, content_sha256, sha256_hex

Model = TypeVar("Model", bound=BaseModel)


def put_content(store: Store, directory: str, suffix: str, data: bytes | Path) -> tuple[str, str]:
    """Put bytes or a file under its own SHA-256. Returns its name, `<directory>/<sha256><suffix>`, and the digest.

    Content that is there already is not an error. Raises StorageError.
    """
    sha256 = content_sha256(data)
    name = f"{directory}/{sha256}{suffix}"
    store.put(name, data)
    return name, sha256


def put_document(store: Store, name: str, document: dict[str, Any]) -> bool:
    """Put a document as canonical JSON that carries its digest; answers and raises as `Store.put`.

    Raises ValueError or TypeError for what JSON cannot hold, NaN included.
    """
    return store.put(name, encode_document(document))


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
