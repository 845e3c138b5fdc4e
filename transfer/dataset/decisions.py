"""Decisions of users about a dataset: classes that are dropped or restored, starting over, images to be forgotten.

An entry of the log has one decision, its reason, and the resulting state; the entry with the highest number counts. The
next ingest follows it. Existing versions never change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.dataset.classes import renamed
from transfer.dataset.index import read_images
from transfer.dataset.manifest import Dataset, latest_dataset, load_dataset
from transfer.errors import AlreadyExistsError, DatasetError
from transfer.storage import Log, Store, as_model, now_utc

Action = Literal["drop-class", "restore-class", "start-over", "forget"]


class DroppedClass(BaseModel):
    """A class that new versions leave out until it is restored."""

    model_config = ConfigDict(frozen=True)

    name: str
    since: str
    reason: str


class ForgottenImage(BaseModel):
    """An image that no new version takes again, wherever the source has it."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    """Of its bytes, as shards had them."""
    keys: tuple[str, ...]
    """Keys that it was named by: no file under them is taken, whatever digest its bytes are stored under."""
    since: str
    reason: str


class Decided(BaseModel):
    """The state after a decision."""

    model_config = ConfigDict(frozen=True)

    dropped: tuple[DroppedClass, ...] = ()
    forgotten: tuple[ForgottenImage, ...] = ()
    starts_over_after: int = 0
    """Later versions do not continue the classes of versions up to this number."""

    def history(self, latest: Dataset | None) -> Dataset | None:
        """The latest version, or None if the dataset starts over after it."""
        if latest is None:
            return None
        # An ingest that began before the decision may have added a version after it, derived from one of these.
        numbers = {latest.number, latest.parent or latest.number, latest.indices_from}
        return latest if min(numbers) > self.starts_over_after else None

    def known_classes(self, parent: Dataset | None, *, renames: Mapping[str, str]) -> list[str]:
        """Classes of a parent version that are the first classes of the next version. Raises DatasetError."""
        dropped = {each.name for each in self.dropped}
        names = renamed(parent.classes if parent else [], renames)
        return [name for name in names if name not in dropped]


class Decision(BaseModel):
    """An entry of the log."""

    model_config = ConfigDict(frozen=True)

    action: Action
    at: str
    reason: str
    then: Decided


def read_decided(store: Store, dataset: str) -> Decided:
    """Read the current state. Raises CorruptObjectError, StorageError."""
    return _latest(store, dataset)[1]


def drop_class(store: Store, dataset: str, name: str, *, reason: str) -> Decided:
    """Leave a class out of the next version. If the class is dropped already, nothing changes.

    The ledger lists the images of the class as `dropped`. Raises DatasetError if the latest version has no such class,
    or fewer than two others.
    """
    latest = load_dataset(store, dataset)

    def decide(now: Decided) -> Decided:
        dropped = {each.name for each in now.dropped}
        if name in dropped:
            return now
        if name not in latest.classes:
            raise DatasetError(
                f"{latest.reference} has no class `{name}`.", advice=f"Its classes are {_named(latest.classes)}."
            )
        left = [other for other in latest.classes if other not in {*dropped, name}]
        if len(left) < 2:
            raise DatasetError(
                f"Without `{name}`, {latest.reference} would have only the class {_named(left)}, and two are needed.",
                advice="Add images of another class and ingest them first, or name another dataset.",
            )
        added = DroppedClass(name=name, since=now_utc(), reason=reason)
        return now.model_copy(update={"dropped": (*now.dropped, added)})

    return _decide(store, dataset, "drop-class", reason, decide)


def restore_class(store: Store, dataset: str, name: str, *, reason: str) -> Decided:
    """Restore a dropped class: the next version has its images again.

    The class gets a new index, or its former one if no version was made without it. Raises DatasetError if the class
    was not dropped.
    """

    def decide(now: Decided) -> Decided:
        left = tuple(each for each in now.dropped if each.name != name)
        if left == now.dropped:
            names = _named([each.name for each in now.dropped])
            raise DatasetError(
                f"The class `{name}` of dataset `{dataset}` is not dropped.", advice=f"Those that are: {names}."
            )
        return now.model_copy(update={"dropped": left})

    return _decide(store, dataset, "restore-class", reason, decide)


def start_over(store: Store, dataset: str, *, reason: str) -> Decided:
    """Let the next version start over: classes get new indices. Dropped classes stay dropped.

    Nothing changes if no version was added since the last start over. Raises DatasetError if there is no version.
    """
    latest = load_dataset(store, dataset)

    def decide(now: Decided) -> Decided:
        return now.model_copy(update={"starts_over_after": latest.number})

    return _decide(store, dataset, "start-over", reason, decide)


def forget_images(store: Store, dataset: str, images: Mapping[str, Sequence[str]], *, reason: str) -> Decided:
    """Let no later version have some images, `{sha256: keys}`, nor files under these keys, which the ledger lists."""

    def decide(now: Decided) -> Decided:
        known = {each.sha256: each for each in now.forgotten}
        for sha256, keys in images.items():
            before = known.get(sha256, ForgottenImage(sha256=sha256, keys=(), since=now_utc(), reason=reason))
            known[sha256] = before.model_copy(update={"keys": tuple(sorted({*before.keys, *keys}))})
        return now.model_copy(update={"forgotten": tuple(known.values())})

    return _decide(store, dataset, "forget", reason, decide)


def is_pending(store: Store, dataset: str, decided: Decided) -> bool:
    """Whether the latest version does not follow the decisions yet, so that the next ingest may make a new one.

    Raises as `read_images`.
    """
    latest = latest_dataset(store, dataset)
    if latest is None:
        return False
    if decided.history(latest) is None or any(each.name in latest.classes for each in decided.dropped):
        return True
    if not _restored_since(store, dataset, latest.created or "") <= {*latest.classes}:
        return True
    # A `forget` adds its version itself, unless it was killed before that.
    forgotten = pa.array([bytes.fromhex(each.sha256) for each in decided.forgotten], pa.binary(32))
    tables = read_images(store, latest, ["sha256"]) if decided.forgotten else []
    return any(pc.any(pc.is_in(table["sha256"], forgotten)).as_py() for table in tables)


def _restored_since(store: Store, dataset: str, created: str) -> set[str]:
    """Classes that were restored after the version created at that time."""
    log = _log(store, dataset)
    restored: set[str] = set()
    dropped: set[str] = set()
    for number in log.numbers():
        entry = as_model(Decision, log.read(number), uri=store.uri)
        now = {each.name for each in entry.then.dropped}
        restored = (restored | (dropped - now if entry.at >= created else set())) - now
        dropped = now
    return restored


def _decide(
    store: Store,
    dataset: str,
    action: Action,
    reason: str,
    decide: Callable[[Decided], Decided],
) -> Decided:
    """Add an entry; if another writer was first, decide again from its state. No entry is added if nothing changes."""
    while True:
        number, now = _latest(store, dataset)
        then = decide(now)
        if then == now:
            return now
        entry = Decision(action=action, at=now_utc(), reason=reason, then=then)
        try:
            _log(store, dataset).append(entry.model_dump(mode="json"), number=number + 1)
        except AlreadyExistsError:
            continue
        return then


def _latest(store: Store, dataset: str) -> tuple[int, Decided]:
    latest = _log(store, dataset).latest()
    return (0, Decided()) if latest is None else (latest[0], as_model(Decision, latest[1], uri=store.uri).then)


def _log(store: Store, dataset: str) -> Log:
    return Log(store, layout.classes_log(dataset))


def _named(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return f"{shown}, …" if len(names) > 12 else shown or "none"
