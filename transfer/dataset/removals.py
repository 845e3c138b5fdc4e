"""Removing objects of which no version has any, while ingests add versions that may have them again.

Whoever removes first adds an entry to a log: the names, and until when. Then it looks at the versions, removes those of
the objects that none of them has, and writes the end. Whoever adds a version reads the log after it added the version.
If a removal that may not be over names an object of the version, it waits for the end or the time, and then writes
again what is missing.

Nothing is lost: either the version was added before the removal looked, so that its objects stay; or the removal looked
before, so that its entry was there before, and whoever added the version reads it. A process that is stopped between
reading its clock and a removal, for longer than `_ENDING` and `_CLOCKS`, is not guarded against.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep

from pydantic import AwareDatetime, BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.dataset.manifest import Dataset
from transfer.storage import PARALLEL, Log, Store, now_utc, put_document, remove_in_steps

logger = logging.getLogger(__name__)
_BEGINNING = timedelta(minutes=10)
"""For so long objects are removed after an entry was added."""
_ENDING = timedelta(minutes=5)
"""For so long, after that, a request may still be on its way: attempts at it end after two minutes."""
_CLOCKS = timedelta(minutes=5)
"""By so much the clocks of two machines may differ."""
_LOOKS_EVERY_S = 2.0


class Removal(BaseModel):
    """An entry of the log: objects that may be removed, until a time."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    until: AwareDatetime

    @property
    def may_go_on(self) -> bool:
        """Whether it may not be over, by the clock of this machine."""
        return datetime.now(UTC) < self.until + _CLOCKS


def objects_of(dataset: Dataset) -> Iterator[str]:
    """Names of all objects of a version: shards, parts of its index, ledger."""
    yield from (shard.name for shard in dataset.shards)
    yield from (part.name for part in dataset.index)
    if dataset.rejects is not None:
        yield dataset.rejects


def remove_unneeded(store: Store, names: Sequence[str], *, needed: Callable[[], Collection[str]]) -> int:
    """Remove objects that no version has, not even one that is added meanwhile.

    `needed` looks at all versions and returns the names of their objects. Returns how many objects are left because
    the time was up. Raises StorageError: then no end is written.
    """
    if not names:
        return 0
    stops_s = monotonic() + _BEGINNING.total_seconds()
    until = datetime.now(UTC) + _BEGINNING + _ENDING
    removal = Removal(names=tuple(names), until=until)
    number = Log(store, layout.removals_log()).append(removal.model_dump(mode="json"))
    still_needed = needed()
    going = [name for name in names if name not in still_needed]
    while going and monotonic() < stops_s:
        remove_in_steps(store, [going[:PARALLEL]])
        del going[:PARALLEL]
    put_document(store, layout.removal_end(number), {"ended": now_utc()})
    return len(going)


def await_removals(store: Store, dataset: Dataset) -> None:
    """Wait while a removal that may not be over names an object of the version.

    If the version was added before, every later removal sees it. Raises CorruptObjectError, StorageError.
    """
    names = {*objects_of(dataset)}
    for number, removal in _without_end(store):
        concerned = names.intersection(removal.names)
        if concerned and removal.may_go_on:
            logger.warning(
                "`datasets gc` may be removing %d objects of %s, among them %s. Waiting for its end, at most until %s.",
                *(len(concerned), dataset.reference, min(concerned), f"{removal.until + _CLOCKS:%H:%M:%S} UTC"),
            )
            while removal.may_go_on and not store.exists(layout.removal_end(number)):
                sleep(_LOOKS_EVERY_S)


def _without_end(store: Store) -> Iterator[tuple[int, Removal]]:
    listed = {item.name for item in store.list(f"{layout.REMOVALS}/")}
    log = Log(store, layout.removals_log())
    numbers = (layout.entry_number_in(layout.REMOVALS, name) for name in sorted(listed))
    for number in numbers:
        if number and layout.removal_end(number) not in listed:
            yield number, log.read_as(Removal, number)
