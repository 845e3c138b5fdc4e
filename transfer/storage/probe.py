"""A check, before any work, whether a store is safe with several writers."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from transfer.catalog import layout
from transfer.errors import StorageError, UnsafeStorageError
from transfer.storage.store import Store

_FIRST = b"first\n"
_SECOND = b"second\n"
_RACERS = 8
_RACES = 6
# A larger body widens the race of services that check the name before they have read the body.
_RACER_SIZE_BYTES = 16 * 1024


def probe(store: Store, *, single_writer: bool) -> None:
    """Check that the store can be written, read and listed, and that it refuses a second object with the same name.

    The check includes objects that are written at the same moment. It writes small objects under `.probe/`, and removes
    them if that is allowed. `single_writer`: accept a store that lets a second writer overwrite the first. Raises
    UnsafeStorageError for such a store otherwise, StorageError if the store cannot be used at all.
    """
    name = layout.probe(uuid.uuid4().hex)
    try:
        refuses = _refuses_second(store, name)
    except UnsafeStorageError:
        if not single_writer:
            raise
        # The store itself said that it is unsafe. Check that it can at least be written.
        store.put(name, _FIRST)
        _require_listed(store, name, len(_FIRST))
        refuses = False
    finally:
        store.discard(name)
    if single_writer:
        return
    if not refuses:
        raise _unsafe(store, "it let a second object replace the first")
    if _lets_several_win(store):
        raise _unsafe(
            store, "of several who wrote a name at the same moment it told more than one that they were first"
        )


def _refuses_second(store: Store, name: str) -> bool:
    store.create(name, _FIRST)
    refused = not store.create(name, _SECOND)
    found = store.read(name)
    if found not in {_FIRST, _SECOND}:
        raise StorageError(
            f"{store.uri} gave back {len(found)} other bytes than were written to {name}.",
            advice="Do not use this store before its operator knows why.",
        )
    _require_listed(store, name, len(found))
    return refused and found == _FIRST


def _lets_several_win(store: Store) -> bool:
    """Whether the store tells several simultaneous writers that they were first: it checks names before it writes."""
    at_once = threading.Barrier(_RACERS)

    def write(name: str, racer: int) -> bool:
        at_once.wait()
        return store.create(name, bytes([racer]) * _RACER_SIZE_BYTES)

    with ThreadPoolExecutor(_RACERS) as racers:
        try:
            for _ in range(_RACES):
                name = layout.probe(uuid.uuid4().hex)
                try:
                    # There may be no winner: if the winner's response is lost, its retry is told that the name is
                    # taken.
                    if list(racers.map(write, [name] * _RACERS, range(_RACERS))).count(True) > 1:
                        return True
                finally:
                    store.discard(name)
        finally:
            # After Ctrl-C some racers would wait forever for others that never started.
            at_once.abort()
    return False


def _unsafe(store: Store, why: str) -> UnsafeStorageError:
    return UnsafeStorageError(
        f"{store.uri} does not honor conditional writes (If-None-Match: *): {why}, so two writers could overwrite each "
        "other.",
        advice="Use a store that honors them, or set storage.single_writer: true where only one job writes at a time.",
    )


def _require_listed(store: Store, name: str, size_bytes: int) -> None:
    """Raise StorageError unless a listing shows a new object at once: logs find their latest entry by listing."""
    found = [(item.name, item.size_bytes) for item in store.list(name)]
    if found != [(name, size_bytes)]:
        raise StorageError(
            f"{store.uri} lists {found or 'nothing'} where {name} was just written with {size_bytes} bytes.",
            advice="Use a store whose listings show at once what was written, as those of S3 do.",
        )
