"""Removing dataset versions that nothing needs, and the objects that no version names any more.

A version's document goes first, so that none is there whose objects are not. Their objects go as
`transfer/dataset/removals.py` says, so that a version that is added meanwhile loses none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from transfer.catalog import layout
from transfer.dataset.manifest import Dataset, dataset_names
from transfer.dataset.removals import objects_of, remove_unneeded
from transfer.maintenance.old_runs import AT_WORK, is_unfinished
from transfer.maintenance.runs import datasets_of_models, datasets_of_runs, versions_of_dataset
from transfer.storage import Log, Store, StoredObject, read_document, remove_in_steps

_FOLDERS = (layout.SHARDS, layout.INDEX, layout.REJECTS)


@dataclass(frozen=True)
class StayingVersion:
    """A version that is not the newest one and stays, and why."""

    dataset: Dataset
    why: str


@dataclass(frozen=True)
class DatasetCleaning:
    """What `remove_old_versions` removed, or would remove."""

    going: tuple[Dataset, ...]
    """Oldest first."""
    kept: tuple[StayingVersion, ...]
    objects: tuple[StoredObject, ...]
    """Shards, parts of indexes and ledgers that no other version names; also what failed ingests left."""
    left: int = 0
    """Objects of these that are there yet because the time of a removal was up: it can be repeated."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the objects."""
        return sum(item.size_bytes for item in self.objects)


def remove_old_versions(
    store: Store, name: str, *, at_work: timedelta = AT_WORK, remove: bool = False
) -> DatasetCleaning:
    """Find, and with `remove` remove, old versions of a dataset that nothing needs, and all objects of no version.

    A version stays if it is the newest, was so until less than `at_work` ago, or is named by a run, a sweep, a model
    version or an unfinished night. An object younger than `at_work` stays, too: its version may be about to be added.
    Raises CorruptObjectError for a document that cannot be read: then nothing is removed. StorageError.
    """
    since = datetime.now(UTC) - at_work
    versions = {each: versions_of_dataset(store, each) for each in dataset_names(store)}
    users = dict(_users(store, name))
    going, kept = [], []
    for version, later in zip(versions.get(name, []), versions.get(name, [])[1:], strict=False):
        if version.reference in users:
            kept.append(StayingVersion(version, users[version.reference]))
        elif later.created is None or datetime.fromisoformat(later.created) > since:
            kept.append(StayingVersion(version, f"was the newest one until {later.created}"))
        else:
            going.append(version)
    stay = [version for of_name in versions.values() for version in of_name if version not in going]
    named = {each for version in stay for each in objects_of(version)}
    objects = [
        item
        for folder in _FOLDERS
        for item in store.list(f"{folder}/")
        if item.name not in named and item.modified_s < since.timestamp()
    ]
    found = DatasetCleaning(tuple(going), tuple(kept), tuple(objects))
    if remove:
        remove_in_steps(store, [[layout.entry(layout.dataset_log(name), version.number) for version in going]])
        left = remove_unneeded(store, [item.name for item in objects], needed=lambda: _named(store))
        return replace(found, left=left)
    return found


def _named(store: Store) -> set[str]:
    """The objects of all versions that there are now."""
    versions = [version for each in dataset_names(store) for version in versions_of_dataset(store, each)]
    return {each for version in versions for each in objects_of(version)}


def _users(store: Store, name: str) -> Iterator[tuple[str, str]]:
    """References of the dataset versions that something names, with what it is in words."""
    for model in store.folders(layout.NIGHTS):
        number = Log(store, layout.nights_log(model)).newest_number()
        plan = layout.night_plan(layout.night_folder(model, number))
        if number and is_unfinished(store, layout.night_folder(model, number)) and store.exists(plan):
            # It does not say of which dataset.
            yield layout.numbered(name, read_document(store, plan)["dataset"]), f"an unfinished night of {model}"
    for item in store.list(f"{layout.SWEEPS}/"):
        if re.fullmatch(layout.pattern(lambda sweep: layout.sweep_start(layout.sweep_folder(sweep))), item.name):
            yield str(read_document(store, item.name)["dataset"]), item.name.rpartition("/")[0]
    for run_id, reference in datasets_of_runs(store):
        yield reference, f"run {run_id}"
    for model, reference in datasets_of_models(store):
        yield reference, f"model version {model}"
