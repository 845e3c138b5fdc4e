"""Pins: versions that stay, whatever retention would do with them."""

from __future__ import annotations

from transfer.registry.retention_log import Pin, Retention, RetentionEntry, add_entry, now_utc
from transfer.registry.versions import load_version
from transfer.storage import Store


def pin_version(store: Store, model: str, number: int, *, reason: str) -> Pin:
    """Keep a version until it is unpinned. One that is pinned already keeps its pin, with its reason.

    Raises RegistryError when there is no such version, also when it is removed at this moment.
    """

    def decide(now: Retention) -> RetentionEntry | None:
        load_version(store, model, number)
        if now.pin_of(number):
            return None
        pin = Pin(version=number, since=now_utc(), reason=reason)
        then = now.model_copy(update={"pins": (*now.pins, pin)})
        return RetentionEntry(action="pin", versions=(number,), at=pin.since, reason=reason, then=then)

    _, holds = add_entry(store, model, decide)
    return next(pin for pin in holds.pins if pin.version == number)


def unpin_version(store: Store, model: str, number: int, *, reason: str = "") -> Pin | None:
    """Take a version's pin away; returns it, or None when there was none. Raises RegistryError for no such version."""
    load_version(store, model, number)
    taken: Pin | None = None

    def decide(now: Retention) -> RetentionEntry | None:
        nonlocal taken
        taken = now.pin_of(number)
        if taken is None:
            return None
        then = now.model_copy(update={"pins": tuple(pin for pin in now.pins if pin != taken)})
        return RetentionEntry(action="unpin", versions=(number,), at=now_utc(), reason=reason, then=then)

    add_entry(store, model, decide)
    return taken
