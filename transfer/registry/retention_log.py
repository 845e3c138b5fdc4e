"""The log that decides what may happen to a model's versions.

An entry says what was done, and all that holds from then on; the highest number is current. Pins, removals and
promotions each take the next number of this log before anything happens. So of a removal and a pin or a promotion at
the same time one is first, and the other sees it and decides anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.errors import AlreadyExistsError, RegistryError
from transfer.storage import Log, Store, as_model, now_utc


class Pin(BaseModel):
    """A version that stays until it is unpinned."""

    model_config = ConfigDict(frozen=True)

    version: int
    since: str
    reason: str


class Announcement(BaseModel):
    """A version that is about to become an entry of the promotion log.

    Once that log has an entry of this number, whoever wrote it, the announcement means nothing any more. So one whose
    writer died needs no time-out.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    promotion: int


class Retention(BaseModel):
    """What holds at one time. Versions that are `removed` do not exist, whatever is left of them."""

    model_config = ConfigDict(frozen=True)

    pins: tuple[Pin, ...] = ()
    announced: tuple[Announcement, ...] = ()
    removed: tuple[int, ...] = ()

    def pin_of(self, version: int) -> Pin | None:
        """The version's pin, if it is pinned."""
        return next((pin for pin in self.pins if pin.version == version), None)


class RetentionEntry(BaseModel):
    """An entry of the log."""

    model_config = ConfigDict(frozen=True)

    action: Literal["pin", "unpin", "promote", "remove"]
    versions: tuple[int, ...]
    at: str
    reason: str
    then: Retention


def retention_log(store: Store, model: str) -> Log:
    """The log of what was pinned, announced and removed of a model's versions."""
    return Log(store, layout.retention_log(model))


def read_retention(store: Store, model: str) -> Retention:
    """What holds now."""
    return _latest(store, model)[1]


def add_entry(
    store: Store, model: str, decide: Callable[[Retention], RetentionEntry | None]
) -> tuple[RetentionEntry | None, Retention]:
    """Add what `decide` answers to what holds now; asked again as long as others come first.

    Returns the entry and what holds after it. With None nothing is added. Raises what `decide` raises, StorageError.
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
    """Say that the version is about to become the promotion log's entry of that number: from now on it stays.

    Raises RegistryError when the version was removed.
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
    """Raises RegistryError for a version that was removed."""
    if version in now.removed:
        raise RegistryError(
            f"Version {version} of model `{model}` was removed by `transfer registry gc`.",
            advice="`transfer registry list` shows those that there are; publishing its run again makes a new version.",
        )


def _latest(store: Store, model: str) -> tuple[int, Retention]:
    latest = retention_log(store, model).latest()
    return (0, Retention()) if latest is None else (latest[0], as_model(RetentionEntry, latest[1], uri=store.uri).then)
