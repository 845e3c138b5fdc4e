"""Cached features in use, and giving up those that are not. Only documents and listings are read."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from transfer.catalog import layout
from transfer.catalog.run import Attempt, CheckpointEntry
from transfer.dataset.manifest import dataset_names, latest_dataset, load_dataset
from transfer.errors import CorruptObjectError, FeaturesError
from transfer.features.layout import Folder, read_folder, read_folders
from transfer.storage import Log, Store, remove_in_steps
from transfer.training.run import read_start

ABANDONED_AFTER = timedelta(days=30)


@dataclass(frozen=True)
class Part:
    """Some of the cached features of a frozen part."""

    shards: int
    images: int
    size_bytes: int


@dataclass(frozen=True)
class Summary:
    """The cached features of one frozen part."""

    digest: str
    """Of the frozen part."""
    description: dict[str, Any]
    """As in `frozen_part.json`; empty where there is none that reads."""
    cached: Part
    """`size_bytes` counts everything: entries, contents and orphans."""
    reachable: Part
    """What belongs to the image shards of live datasets."""
    orphans: int
    """Contents that no entry names."""
    runs: tuple[UnfinishedRun, ...]
    """Those that rely on it and are not finished."""


def summarize(store: Store) -> list[Summary]:
    """The cached features of each frozen part, and how much of them is in use.

    Raises CorruptObjectError and ObjectNotFoundError for documents of runs and datasets, StorageError.
    """
    usage = UsageWatch(store).look()
    return [_summary(folder, usage) for folder in read_folders(store)]


def _summary(folder: Folder, usage: Usage) -> Summary:
    reachable = folder.entries.keys() & usage.live
    return Summary(
        digest=folder.digest,
        description=folder.description or {},
        cached=Part(len(folder.entries), folder.rows_of(folder.entries), sum(folder.sizes.values())),
        reachable=Part(
            len(reachable),
            folder.rows_of(reachable),
            folder.bytes_of(shards=reachable, contents=folder.contents_of(reachable)),
        ),
        orphans=len(folder.orphans),
        runs=_relying_on(folder, usage),
    )


@dataclass(frozen=True)
class LeftAlone:
    """What is not removed although nothing live needs it, and why."""

    why: str
    run: str | None
    """The unfinished run that relies on it, if that is why."""
    shards: int
    orphans: int


@dataclass(frozen=True)
class Cleanup:
    """What goes of one frozen part, and what is left alone."""

    digest: str
    description: dict[str, Any]
    shards: tuple[str, ...]
    """SHA-256 of the image shards whose entries go."""
    contents: tuple[str, ...]
    """Names of the contents that belong to those entries only."""
    orphans: tuple[str, ...]
    """Names of the contents that no entry names."""
    whole: bool
    """Whether nothing of the frozen part is left, so that its description goes, too."""
    size_bytes: int
    left_alone: tuple[LeftAlone, ...]

    def steps(self) -> list[list[str]]:
        """Names of the objects that go, entries first: who reads in between finds nothing cached."""
        entries = [layout.features_entry(self.digest, shard) for shard in self.shards]
        return [
            entries,
            [*self.contents, *self.orphans],
            [layout.features_description(self.digest)] if self.whole else [],
        ]

    @property
    def removes(self) -> bool:
        """Whether anything goes."""
        return any(self.steps())


@dataclass(frozen=True)
class Collection:
    """What `collect_garbage` removed, or would remove."""

    cleanups: tuple[Cleanup, ...]
    """Of the frozen parts of which something goes or is left alone."""
    abandoned: tuple[UnfinishedRun, ...]
    """Unfinished runs that relied on these frozen parts, and are too old to count."""


def collect_garbage(
    store: Store,
    *,
    named: Sequence[str] = (),
    remove: bool = False,
    abandoned_after: timedelta = ABANDONED_AFTER,
) -> Collection:
    """Find, and with `remove` give up, what no live dataset and no unfinished run needs.

    That is the features of other image shards, contents without an entry, and all features of the frozen parts whose
    digests begin as `named` says. Unfinished runs whose last attempt began longer than `abandoned_after` ago do not
    count.

    Raises FeaturesError for a name that fits no frozen part or several, StorageError. Nothing is removed when a
    document of a run or a dataset cannot be read: then it is not known what is needed.
    """
    watch, abandoned_before = UsageWatch(store), datetime.now(UTC) - abandoned_after
    usage = watch.look()
    abandoned = usage.started_before(abandoned_before)
    folders = list(read_folders(store))
    whole = {_named(name, folders, store) for name in named}
    cleanups = []
    for folder in folders:
        is_named = folder.digest in whole
        cleanup = _plan(folder, usage.without(abandoned), is_named=is_named, seen=folder.contents)
        if remove and cleanup.removes:
            # A job may have started meanwhile. It claims before it writes: what is written by now is claimed, and what
            # is written from now on was not seen.
            usage = watch.look()
            again = read_folder(store, folder.digest)
            cleanup = _plan(again, usage.without(abandoned), is_named=is_named, seen=folder.contents)
            remove_in_steps(store, cleanup.steps())
        if cleanup.removes or cleanup.left_alone:
            cleanups.append(cleanup)
    concerned = {cleanup.digest for cleanup in cleanups}
    return Collection(tuple(cleanups), tuple(run for run in abandoned if run.frozen_parts & concerned))


def _named(name: str, folders: Iterable[Folder], store: Store) -> str:
    """The digest that begins with `name`."""
    found = [folder.digest for folder in folders if name and folder.digest.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(digest[:12] for digest in found[:5])
        raise FeaturesError(
            f"{len(found)} frozen parts in {store.uri} have digests that begin with `{name}`, among them {some}.",
            advice="Give more digits. `transfer cache list --json` shows all of them.",
        )
    raise FeaturesError(
        f"No frozen part with cached features in {store.uri} has a digest that begins with `{name}`.",
        advice="`transfer cache list` shows those that there are.",
    )


def _plan(folder: Folder, usage: Usage, *, is_named: bool, seen: Container[str]) -> Cleanup:
    """What goes of a frozen part. Orphans go only if they are among `seen`: contents that were there a while ago."""
    relying = _relying_on(folder, usage)
    unwanted = {shard for shard in folder.entries if is_named or shard not in usage.live}
    # A run may also start from an earlier cut than the one it claimed; only a name is reason enough to take that.
    needed = {run: unwanted & run.shards for run in (relying if is_named else usage.runs)}
    shards = unwanted.difference(*needed.values())
    rest = folder.entries.keys() - shards
    # Image shards may share a content.
    contents = (folder.contents_of(shards) - folder.contents_of(rest)) & folder.contents
    orphans = {name for name in folder.orphans if name in seen}
    left = [_left_for(run, needed.get(run, set()), orphans if run in relying else set()) for run in usage.runs]
    unreadable = sum(folder.entries[shard] is None for shard in rest)
    if unreadable:
        why = f"they may belong to entries that do not read: {unreadable} (see `transfer cache verify`)"
        left.append(LeftAlone(why, run=None, shards=0, orphans=len(orphans)))
    if relying or unreadable:
        orphans = set()
    return Cleanup(
        digest=folder.digest,
        description=folder.description or {},
        shards=tuple(sorted(shards)),
        contents=tuple(sorted(contents)),
        orphans=tuple(sorted(orphans)),
        whole=not relying and not rest and folder.contents == contents | orphans,
        size_bytes=folder.bytes_of(shards=shards, contents=contents | orphans),
        left_alone=tuple(each for each in left if each.shards or each.orphans),
    )


def _relying_on(folder: Folder, usage: Usage) -> tuple[UnfinishedRun, ...]:
    return tuple(run for run in usage.runs if folder.digest in run.frozen_parts)


def _left_for(run: UnfinishedRun, shards: set[str], orphans: set[str]) -> LeftAlone:
    why = f"run {run.id} on {run.dataset}, last attempt {run.started:%Y-%m-%d %H:%M} UTC"
    return LeftAlone(why, run=run.id, shards=len(shards), orphans=len(orphans))


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that relies on cached features, and has not come to its end."""

    id: str
    dataset: str
    """Its version, `flowers/00000003`."""
    started: datetime
    """When its last attempt began."""
    frozen_parts: frozenset[str]
    """Digests of the frozen parts that it relies on."""
    shards: frozenset[str]
    """SHA-256 of the image shards of its dataset version."""


@dataclass(frozen=True)
class Usage:
    """What is in use at one time."""

    live: frozenset[str]
    """SHA-256 of the image shards in the newest version of any dataset."""
    runs: tuple[UnfinishedRun, ...]

    def without(self, abandoned: tuple[UnfinishedRun, ...]) -> Usage:
        """The same, as if some runs did not exist."""
        return replace(self, runs=tuple(run for run in self.runs if run not in abandoned))

    def started_before(self, time: datetime) -> tuple[UnfinishedRun, ...]:
        """The runs whose last attempt began before `time`."""
        return tuple(run for run in self.runs if run.started < time)


class UsageWatch:
    """Looks, as often as one likes, at what is in use. A run that was finished once is not looked at again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._finished: set[str] = set()

    def look(self) -> Usage:
        """What is in use now.

        Raises CorruptObjectError and ObjectNotFoundError for documents of runs and datasets that cannot be read: then
        it is not known. StorageError.
        """
        # Runs first: a job that starts meanwhile has ingested before it has a run.
        runs = tuple(run for run in map(self._unfinished, self._run_ids()) if run)
        return Usage(live=self._live(), runs=runs)

    def _run_ids(self) -> list[str]:
        names = (item.name for item in self._store.list(f"{layout.RUNS}/"))
        matches = (re.fullmatch(layout.pattern(layout.run_start), name) for name in names)
        return [match[1] for match in matches if match]

    def _unfinished(self, run_id: str) -> UnfinishedRun | None:
        """The run, if it relies on cached features and is not finished."""
        if run_id in self._finished:
            return None
        uses = Log(self._store, layout.uses_log(layout.run_folder(run_id)))
        attempts = [uses.read_as(Attempt, number) for number in uses.numbers()]
        frozen_parts = frozenset(digest for attempt in attempts for digest in attempt.frozen_parts)
        if not frozen_parts:
            return None
        if self._is_finished(run_id):
            self._finished.add(run_id)
            return None
        dataset = read_start(self._store, run_id).dataset
        version = load_dataset(self._store, dataset.name, dataset.number)
        return UnfinishedRun(
            id=run_id,
            dataset=version.reference,
            started=max(datetime.fromisoformat(attempt.started) for attempt in attempts),
            frozen_parts=frozen_parts,
            shards=frozenset(shard.sha256 for shard in version.shards),
        )

    def _is_finished(self, run_id: str) -> bool:
        try:
            newest = Log(self._store, layout.checkpoints_log(layout.run_folder(run_id))).latest_as(CheckpointEntry)
        except CorruptObjectError:
            return False  # Training passes over it, and goes on from the one before.
        return newest is not None and newest[1].progress.complete

    def _live(self) -> frozenset[str]:
        newest = [latest_dataset(self._store, name) for name in dataset_names(self._store)]
        return frozenset(shard.sha256 for dataset in newest if dataset for shard in dataset.shards)
