"""What is in use of what is kept: the shards of live datasets, and what unfinished runs rely on.

Training stands above this room, so runs are known by their documents in storage (`training/run.py` describes them).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from transfer.dataset.manifest import latest_dataset, load_dataset
from transfer.errors import CorruptObjectError
from transfer.storage import Log, Store, read_document

_RUNS = "runs/"
_RUN = "/run.json"
_DATASETS = "datasets/"


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that relies on what is kept, and has not come to its end."""

    id: str
    dataset: str
    """Its version, `flowers/00000003`."""
    started: datetime
    """When its last attempt began."""
    prefixes: frozenset[str]
    """Digests of the prefixes that it relies on."""
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
        names = (item.name for item in self._store.list(_RUNS))
        return [name.removeprefix(_RUNS).removesuffix(_RUN) for name in names if name.endswith(_RUN)]

    def _unfinished(self, run_id: str) -> UnfinishedRun | None:
        """The run, if it relies on what is kept and is not finished."""
        if run_id in self._finished:
            return None
        uses = Log(self._store, f"{_RUNS}{run_id}/uses")
        attempts = [uses.read(number) for number in uses.numbers()]
        if not attempts:
            return None
        if self._is_finished(run_id):
            self._finished.add(run_id)
            return None
        dataset = read_document(self._store, f"{_RUNS}{run_id}{_RUN}")["dataset"]
        version = load_dataset(self._store, dataset["name"], dataset["number"])
        return UnfinishedRun(
            id=run_id,
            dataset=version.reference,
            started=max(datetime.fromisoformat(attempt["started"]) for attempt in attempts),
            prefixes=frozenset(prefix for attempt in attempts for prefix in attempt["prefixes"]),
            shards=frozenset(shard.sha256 for shard in version.shards),
        )

    def _is_finished(self, run_id: str) -> bool:
        try:
            newest = Log(self._store, f"{_RUNS}{run_id}/checkpoints").latest()
        except CorruptObjectError:
            return False  # Training passes over it, and goes on from the one before.
        return newest is not None and bool(newest[1]["progress"]["complete"])

    def _live(self) -> frozenset[str]:
        names = {item.name.removeprefix(_DATASETS).rpartition("/")[0] for item in self._store.list(_DATASETS)}
        newest = [latest_dataset(self._store, name) for name in sorted(names) if name]
        return frozenset(shard.sha256 for dataset in newest if dataset for shard in dataset.shards)
