"""A numbered log: entries are only ever added, each number is given once, whoever writes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from transfer.errors import AlreadyExistsError
from transfer.storage.documents import put_document, read_document
from transfer.storage.store import Store, check_name

Number = Annotated[int, Field(ge=1, lt=2**63)]
"""Of an entry, as documents say it."""
_ENTRY = re.compile(r"([0-9]{8,})\.json")


class Log:
    """The documents `<prefix>/00000001.json`, `00000002.json`, … of a store. The highest number is the current one."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = check_name(prefix)

    def numbers(self) -> list[int]:
        """All numbers that have an entry, rising."""
        start = f"{self._prefix}/"
        matches = (_ENTRY.fullmatch(item.name.removeprefix(start)) for item in self._store.list(start))
        return sorted(int(match.group(1)) for match in matches if match)

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The highest number and its document; None while the log is empty. Raises CorruptObjectError, StorageError."""
        numbers = self.numbers()
        return (numbers[-1], self.read(numbers[-1])) if numbers else None

    def read(self, number: int) -> dict[str, Any]:
        """The document of that number. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
        return read_document(self._store, self._name(number))

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
        return f"{self._prefix}/{number:08d}.json"
