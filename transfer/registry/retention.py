"""Removal of old versions; never one that serves, served before, is pinned or is about to be promoted.

An entry of the retention log removes a version: from then on it does not exist for commands and jobs. Only then its
objects are removed. The JSON goes first, so that direct readers of storage see the version whole or not at all; then
`saved_model.pb`, without which no folder loads as a model; then the rest. The next removal completes one that was
killed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.registry.promote import Serving, read_serving
from transfer.registry.retention_log import Pin, Retention, RetentionEntry, add_entry, read_retention
from transfer.registry.versions import list_versions, load_version, promotions_log
from transfer.storage import Store, now_utc, remove_in_steps


def pin_version(store: Store, model: str, number: int, *, reason: str) -> Pin:
    """Protect a version from removal until it is unpinned. An existing pin does not change, nor does its reason.

    Raises RegistryError if the version does not exist, also if another process removes it at this moment.
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
    """Remove a version's pin. Returns it, or None if there was none. Raises RegistryError for an unknown version."""
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


@dataclass(frozen=True)
class Kept:
    """A version that stays although it is not among the newest, with the reason."""

    version: ModelVersion
    why: str


@dataclass(frozen=True)
class RemovalPlan:
    """The versions to remove, oldest first, and the old versions that stay."""

    going: tuple[ModelVersion, ...]
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Cleaning:
    """Result of `remove_old_versions`: what it removed, or would remove."""

    plan: RemovalPlan
    unfinished: tuple[int, ...]
    """Versions that were removed earlier but still had objects."""
    served: tuple[int, ...]
    """Promotions before the last two; their copies for servers are removed."""


def remove_old_versions(store: Store, model: str, *, keep: int, remove: bool = False) -> Cleaning:
    """Find unneeded versions beyond the newest `keep` (1 or more), and remove them if `remove` is set.

    The version that serves, the one that served before it, pinned versions and versions that are about to be promoted
    stay. So does a version that is being published, which does not count as a version yet. Several calls may run at
    once. Raises CorruptObjectError for a damaged document, in which case nothing is removed; StorageError.
    """
    if keep < 1:
        raise ValueError(f"keep (={keep}) must be 1 or more")
    plan = RemovalPlan((), ())
    unfinished = _left_of(store, model, read_retention(store, model).removed)

    def decide(now: Retention) -> RetentionEntry | None:
        nonlocal plan
        plan = _plan(store, model, now, keep)
        going = tuple(version.number for version in plan.going)
        if not remove or not going:
            return None
        then = now.model_copy(update={"removed": tuple(sorted({*now.removed, *going}))})
        reason = f"older than the newest {keep}"
        return RetentionEntry(action="remove", versions=going, at=now_utc(), reason=reason, then=then)

    _, holds = add_entry(store, model, decide)
    served = _served_before(store, model)
    if remove:
        _remove(store, _left_of(store, model, holds.removed), model)
        remove_in_steps(store, _graphs_first([name for names in served.values() for name in names]))
    return Cleaning(plan, tuple(sorted(unfinished)), tuple(sorted(served)))


def _plan(store: Store, model: str, now: Retention, keep: int) -> RemovalPlan:
    """The plan for the retention state `now`.

    The promotion log is read after the retention log. So a promotion that is not in its log yet either was announced in
    `now`, or finds the version removed when it is announced.
    """
    reasons = _reasons_to_stay(now, read_serving(store, model))
    old = list(list_versions(store, model))[:-keep]
    return RemovalPlan(
        going=tuple(version for version in old if version.number not in reasons),
        kept=tuple(Kept(version, reasons[version.number]) for version in old if version.number in reasons),
    )


def _reasons_to_stay(now: Retention, serving: Serving) -> dict[int, str]:
    """The reason for each version that must stay; the strongest one if there are several."""
    reasons = {each.version: "about to be promoted" for each in now.announced if each.promotion > serving.number}
    reasons |= {pin.version: f"pinned: {pin.reason}" for pin in now.pins}
    if serving.before is not None:
        reasons[serving.before] = "served before the present one"
    if serving.promotion is not None:
        reasons[serving.promotion.version] = "promoted"
    return reasons


def _left_of(store: Store, model: str, removed: Iterable[int]) -> dict[int, list[str]]:
    """Names of the remaining objects of removed versions, by version."""
    left: dict[int, list[str]] = {}
    wanted, folder = set(removed), layout.versions_log(model)
    for item in store.list(f"{folder}/"):
        number = layout.below(folder, item.name)[0].removesuffix(".json")
        if number.isdecimal() and int(number) in wanted:
            left.setdefault(int(number), []).append(item.name)
    return left


def _served_before(store: Store, model: str) -> dict[int, list[str]]:
    """Names of the objects in copies for servers before the last two promotions, by promotion."""
    folder, copies = layout.serving_folder(model), defaultdict(list)
    last = promotions_log(store, model).newest_number()
    for item in store.list(f"{folder}/"):
        number, *rest = layout.below(folder, item.name)
        if rest and number.isdecimal() and int(number) < last - 1:
            copies[int(number)].append(item.name)
    return dict(copies)


def _remove(store: Store, left: dict[int, list[str]], model: str) -> None:
    """Remove objects; first the documents, because a version without its document does not exist."""
    names = [name for of_version in left.values() for name in of_version]
    documents = {layout.entry(layout.versions_log(model), number) for number in left} & set(names)
    remove_in_steps(store, [documents, *_graphs_first(set(names) - documents)])


def _graphs_first(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split off the files `saved_model.pb`, without which no folder loads as a model, to be removed first."""
    graphs = {name for name in names if name.endswith("/saved_model.pb")}
    return sorted(graphs), sorted(set(names) - graphs)
