"""Removing old versions, never one that serves, served last, is pinned or is about to be promoted.

A version is removed by an entry of the retention log; from then on it does not exist for the commands and jobs here.
Only then its objects go: the JSON first, so that whoever reads storage directly sees it whole or not at all, then
`saved_model.pb`, without which TensorFlow Serving takes a folder for unfinished, then the rest. What a killed removal
left is removed by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from transfer.registry.retention_log import Retention, RetentionEntry, add_entry, now_utc, read_retention
from transfer.registry.rollback import Serving, read_serving
from transfer.registry.versions import ModelVersion, list_versions, versions_folder
from transfer.storage import Store

PARALLEL = 16
"""Small requests at once: a bucket answers each in some ten milliseconds."""


@dataclass(frozen=True)
class Kept:
    """A version beyond the newest that stays, and why."""

    version: ModelVersion
    why: str


@dataclass(frozen=True)
class Plan:
    """What goes of a model's versions, oldest first, and what stays although it is old."""

    going: tuple[ModelVersion, ...]
    kept: tuple[Kept, ...]


@dataclass(frozen=True)
class Cleaning:
    """What `remove_old_versions` removed, or would remove."""

    plan: Plan
    unfinished: tuple[int, ...]
    """Versions that were removed earlier, of which something was still there."""


def remove_old_versions(store: Store, model: str, *, keep: int, remove: bool = False) -> Cleaning:
    """Find, and with `remove` remove, versions beyond the newest `keep` (1 or more) that nothing needs.

    Those that are promoted, were promoted last before that, are pinned or about to be promoted stay, and whatever is
    being published: it is no version yet. Several may run at once. Raises CorruptObjectError for a document that
    cannot be read: then nothing is removed. StorageError.
    """
    if keep < 1:
        raise ValueError(f"keep (={keep}) must be 1 or more")
    plan = Plan((), ())
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
    if remove:
        _remove(store, _left_of(store, model, holds.removed), model)
    return Cleaning(plan, tuple(sorted(unfinished)))


def _plan(store: Store, model: str, now: Retention, keep: int) -> Plan:
    """What goes if `now` is what holds when it is decided.

    The promotion log is read after the retention log. So a promotion that is not in it yet was announced in `now`, or
    will find that the version was removed when it is announced.
    """
    reasons = _reasons_to_stay(now, read_serving(store, model))
    old = list(list_versions(store, model))[:-keep]
    return Plan(
        going=tuple(version for version in old if version.number not in reasons),
        kept=tuple(Kept(version, reasons[version.number]) for version in old if version.number in reasons),
    )


def _reasons_to_stay(now: Retention, serving: Serving) -> dict[int, str]:
    """Why each version that must stay does, the strongest reason if there are several."""
    reasons = {each.version: "about to be promoted" for each in now.announced if each.promotion > serving.number}
    reasons |= {pin.version: f"pinned: {pin.reason}" for pin in now.pins}
    if serving.before is not None:
        reasons[serving.before] = "served before the present one"
    if serving.promotion is not None:
        reasons[serving.promotion.version] = "promoted"
    return reasons


def _left_of(store: Store, model: str, removed: Iterable[int]) -> dict[int, list[str]]:
    """Names of the objects that are still there of removed versions, by version."""
    left: dict[int, list[str]] = {}
    wanted, folder = set(removed), f"{versions_folder(model)}/"
    for item in store.list(folder):
        number = item.name.removeprefix(folder).split("/")[0].removesuffix(".json")
        if number.isdecimal() and int(number) in wanted:
            left.setdefault(int(number), []).append(item.name)
    return left


def _remove(store: Store, left: dict[int, list[str]], model: str) -> None:
    names = [name for of_version in left.values() for name in of_version]
    documents = {f"{versions_folder(model)}/{number:08d}.json" for number in left} & set(names)
    graphs = {name for name in names if name.endswith("/saved_model.pb")}
    with ThreadPoolExecutor(PARALLEL) as pool:
        for step in (documents, graphs, set(names) - documents - graphs):
            list(pool.map(store.remove, sorted(step)))
