"""The log of pins, removals and announced promotions of a model's versions.

An entry has an action and the complete state after it; the entry with the highest number is current. Pins, removals and
promotions are written under the next number of this log before they take effect. So if a removal and a pin or promotion
happen at the same time, one of them is first, and the other one reads it and decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, RegistryError
from transfer.storage import Log, Store, as_model, now_utc


class Pin(BaseModel):
    """A version that is protected from removal until it is unpinned."""

    model_config = ConfigDict(frozen=True)

    version: int
    since: str
    reason: str


class Announcement(BaseModel):
    """A version that is about to become an entry of the promotion log.

    Once the promotion log has an entry with this number, from any process, the announcement has no effect any more. So
    the announcement of a process that died needs no time-out.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    promotion: int


class Retention(BaseModel):
    """State after an entry. Versions in `removed` do not exist, even if objects of them remain."""

    model_config = ConfigDict(frozen=True)

    pins: tuple[Pin, ...] = ()
    announced: tuple[Announcement, ...] = ()
    removed: tuple[int, ...] = ()

    def pin_of(self, version: int) -> Pin | None:
        """The version's pin, if it is pinned."""
        return next((pin for pin in self.pins if pin.version == version), None)


class RetentionEntry(BaseModel):
    """An entry of the log. `then`: the state after it."""

    model_config = ConfigDict(frozen=True)

    action: Literal["pin", "unpin", "promote", "remove"]
    versions: tuple[int, ...]
    at: str
    reason: str
    then: Retention


def retention_log(store: Store, model: str) -> Log:
    """The log of pins, removals and announced promotions of a model."""
    return Log(store, layout.retention_log(model))


def read_retention(store: Store, model: str) -> Retention:
    """Read the current state."""
    return _latest(store, model)[1]


def add_entry(
    store: Store, model: str, decide: Callable[[Retention], RetentionEntry | None]
) -> tuple[RetentionEntry | None, Retention]:
    """Append the entry that `decide` returns for the current state.

    `decide` is called again if another process appends first. If it returns None, nothing is appended. Returns the
    entry and the state after it. Raises the errors of `decide`, StorageError.
    """
    while True:
        number, now = _latest(store, model)
        entry = decide(now)
        if entry is None:
            return None, now
        try:
            retention_log(store, model).append(entry.model_dump(mode="json"), number=number + 1)
        except AlreadyExistsError:
            continue
        return entry, entry.then


def announce_promotion(store: Store, model: str, version: int, *, promotion: int) -> None:
    """Announce that the promotion log's entry `promotion` will be this version, which protects it from removal.

    Raises RegistryError if the version was removed.
    """

    def decide(now: Retention) -> RetentionEntry:
        check_not_removed(now, model, version)
        announced = tuple(other for other in now.announced if other.promotion >= promotion)
        this = Announcement(version=version, promotion=promotion)
        return RetentionEntry(
            action="promote",
            versions=(version,),
            at=now_utc(),
            reason=f"promotion {promotion}",
            then=now.model_copy(update={"announced": (*announced, this)}),
        )

    add_entry(store, model, decide)


def check_not_removed(now: Retention, model: str, version: int) -> None:
    """Raise RegistryError if the version was removed."""
    if version in now.removed:
        raise RegistryError(
            f"Version {version} of model `{model}` was removed by `transfer registry gc`.",
            advice="`transfer registry list` shows those that there are; publishing its run again makes a new version.",
        )


def _latest(store: Store, model: str) -> tuple[int, Retention]:
    latest = retention_log(store, model).latest()
    return (0, Retention()) if latest is None else (latest[0], as_model(RetentionEntry, latest[1], uri=store.uri).then)
