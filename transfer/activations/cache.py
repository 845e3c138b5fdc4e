"""What is kept, how much of it is in use, and giving up what is not. Only documents and listings are read."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from transfer.activations.folders import PARALLEL, Folder, read_folder, read_folders
from transfer.activations.layout import content_name, description_name, entry_name
from transfer.activations.usage import UnfinishedRun, Usage, UsageWatch
from transfer.errors import ActivationsError
from transfer.storage import Store

ABANDONED_AFTER = timedelta(days=30)


@dataclass(frozen=True)
class Part:
    """Some of what is kept of a prefix."""

    shards: int
    images: int
    size_bytes: int


@dataclass(frozen=True)
class Summary:
    """What is kept of one prefix."""

    prefix: str
    description: dict[str, Any]
    """As in `prefix.json`; empty where there is none that reads."""
    kept: Part
    """`size_bytes` counts everything: entries, contents and orphans."""
    reachable: Part
    """What belongs to the image shards of live datasets."""
    orphans: int
    """Contents that no entry names."""
    runs: tuple[UnfinishedRun, ...]
    """Those that rely on it and are not finished."""


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
    """What goes of one prefix, and what is left alone."""

    prefix: str
    description: dict[str, Any]
    shards: tuple[str, ...]
    """SHA-256 of the image shards whose entries go."""
    contents: tuple[str, ...]
    """SHA-256 of the contents that only those entries name."""
    orphans: tuple[str, ...]
    """SHA-256 of the contents that no entry names."""
    whole: bool
    """Whether nothing of the prefix is left, so that its description goes, too."""
    size_bytes: int
    left_alone: tuple[LeftAlone, ...]

    def steps(self) -> list[list[str]]:
        """Names of the objects that go, entries first: who reads in between finds nothing kept."""
        entries = [entry_name(self.prefix, shard) for shard in self.shards]
        contents = [content_name(self.prefix, sha256) for sha256 in (*self.contents, *self.orphans)]
        return [entries, contents, [description_name(self.prefix)] if self.whole else []]

    @property
    def removes(self) -> bool:
        """Whether anything goes."""
        return any(self.steps())


@dataclass(frozen=True)
class Collection:
    """What `collect_garbage` removed, or would remove."""

    cleanups: tuple[Cleanup, ...]
    """Of the prefixes of which something goes or is left alone."""
    abandoned: tuple[UnfinishedRun, ...]
    """Unfinished runs that relied on these prefixes, and are too old to count."""


def summarize(store: Store) -> list[Summary]:
    """What is kept of each prefix, and how much of it is in use.

    Raises CorruptObjectError and ObjectNotFoundError for documents of runs and datasets, StorageError.
    """
    usage = UsageWatch(store).look()
    return [_summary(folder, usage) for folder in read_folders(store)]


def collect_garbage(
    store: Store,
    *,
    named: Sequence[str] = (),
    remove: bool = False,
    abandoned_after: timedelta = ABANDONED_AFTER,
) -> Collection:
    """Find, and with `remove` give up, what no live dataset and no unfinished run needs.

    That is what is kept for other image shards, contents without an entry, and everything of the prefixes whose digests
    begin as `named` says. Unfinished runs whose last attempt began longer than `abandoned_after` ago do not count.

    Raises ActivationsError for a name that fits no prefix or several, StorageError. Nothing is removed when a document
    of a run or a dataset cannot be read: then it is not known what is needed.
    """
    watch, abandoned_before = UsageWatch(store), datetime.now(UTC) - abandoned_after
    usage = watch.look()
    abandoned = usage.started_before(abandoned_before)
    folders = list(read_folders(store))
    whole = {_named(name, folders, store) for name in named}
    cleanups = []
    for folder in folders:
        is_named = folder.prefix in whole
        cleanup = _plan(folder, usage.without(abandoned), is_named=is_named, seen=folder.contents)
        if remove and cleanup.removes:
            # A job may have started meanwhile. It claims before it writes: what is written by now is claimed, and what
            # is written from now on was not seen.
            usage = watch.look()
            again = read_folder(store, folder.prefix)
            cleanup = _plan(again, usage.without(abandoned), is_named=is_named, seen=folder.contents)
            _remove(store, cleanup.steps())
        if cleanup.removes or cleanup.left_alone:
            cleanups.append(cleanup)
    concerned = {cleanup.prefix for cleanup in cleanups}
    return Collection(tuple(cleanups), tuple(run for run in abandoned if run.prefixes & concerned))


def _summary(folder: Folder, usage: Usage) -> Summary:
    reachable = folder.entries.keys() & usage.live
    return Summary(
        prefix=folder.prefix,
        description=folder.description or {},
        kept=Part(len(folder.entries), folder.rows_of(folder.entries), sum(folder.sizes.values())),
        reachable=Part(
            len(reachable),
            folder.rows_of(reachable),
            folder.bytes_of(shards=reachable, contents=folder.contents_of(reachable)),
        ),
        orphans=len(folder.orphans),
        runs=_relying_on(folder, usage),
    )


def _relying_on(folder: Folder, usage: Usage) -> tuple[UnfinishedRun, ...]:
    return tuple(run for run in usage.runs if folder.prefix in run.prefixes)


def _named(name: str, folders: Iterable[Folder], store: Store) -> str:
    """The digest that begins with `name`."""
    found = [folder.prefix for folder in folders if name and folder.prefix.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(prefix[:12] for prefix in found[:5])
        raise ActivationsError(
            f"{len(found)} prefixes in {store.uri} begin with `{name}`, among them {some}.",
            advice="Give more digits. `transfer cache ls --json` shows all of them.",
        )
    raise ActivationsError(
        f"No prefix of which something is kept in {store.uri} begins with `{name}`.",
        advice="`transfer cache ls` shows those that there are.",
    )


def _plan(folder: Folder, usage: Usage, *, is_named: bool, seen: Container[str]) -> Cleanup:
    """What goes of a prefix. Orphans go only if they are among `seen`: contents that were there a while ago."""
    relying = _relying_on(folder, usage)
    unwanted = {shard for shard in folder.entries if is_named or shard not in usage.live}
    # A run may also start from an earlier cut than the one it claimed; only a name is reason enough to take that.
    needed = {run: unwanted & run.shards for run in (relying if is_named else usage.runs)}
    shards = unwanted.difference(*needed.values())
    rest = folder.entries.keys() - shards
    # Image shards may share a content.
    contents = (folder.contents_of(shards) - folder.contents_of(rest)) & folder.contents
    orphans = {sha256 for sha256 in folder.orphans if sha256 in seen}
    left = [_left_for(run, needed.get(run, set()), orphans if run in relying else set()) for run in usage.runs]
    unreadable = sum(folder.entries[shard] is None for shard in rest)
    if unreadable:
        why = f"they may belong to entries that do not read: {unreadable} (see `transfer cache verify`)"
        left.append(LeftAlone(why, run=None, shards=0, orphans=len(orphans)))
    if relying or unreadable:
        orphans = set()
    return Cleanup(
        prefix=folder.prefix,
        description=folder.description or {},
        shards=tuple(sorted(shards)),
        contents=tuple(sorted(contents)),
        orphans=tuple(sorted(orphans)),
        whole=not relying and not rest and folder.contents == contents | orphans,
        size_bytes=folder.bytes_of(shards=shards, contents=contents | orphans),
        left_alone=tuple(each for each in left if each.shards or each.orphans),
    )


def _left_for(run: UnfinishedRun, shards: set[str], orphans: set[str]) -> LeftAlone:
    why = f"run {run.id} on {run.dataset}, last attempt {run.started:%Y-%m-%d %H:%M} UTC"
    return LeftAlone(why, run=run.id, shards=len(shards), orphans=len(orphans))


def _remove(store: Store, steps: Iterable[list[str]]) -> None:
    with ThreadPoolExecutor(PARALLEL) as pool:
        for names in steps:
            list(pool.map(store.remove, names))
