"""Runs and dataset versions as they lie in storage: how far each has come, what came of it, and what it takes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from transfer.catalog import layout
from transfer.catalog.run import Attempt, CheckpointEntry, Progress, ReportEntry, RunStart
from transfer.dataset.manifest import Dataset, dataset_log, dataset_names, parse_dataset
from transfer.errors import CorruptObjectError, DatasetError, ObjectNotFoundError
from transfer.registry.versions import list_versions, model_names
from transfer.storage import PARALLEL, Log, Store, StoredObject
from transfer.training.run import read_start

Document = TypeVar("Document", Attempt, ReportEntry)


@dataclass(frozen=True)
class StoredVersion:
    """A dataset version. `own_bytes`: of shards that no other version of any dataset has."""

    dataset: Dataset
    size_bytes: int
    own_bytes: int


def list_datasets(store: Store, name: str | None = None) -> list[StoredVersion]:
    """All versions of a dataset, or of all of them, oldest first. Raises CorruptObjectError, StorageError."""
    versions = {each: versions_of_dataset(store, each) for each in dataset_names(store)}
    users = Counter(shard.name for found in versions.values() for dataset in found for shard in dataset.shards)
    return [
        StoredVersion(
            dataset=dataset,
            size_bytes=sum(shard.size_bytes for shard in dataset.shards),
            own_bytes=sum(shard.size_bytes for shard in dataset.shards if users[shard.name] == 1),
        )
        for each in (versions if name is None else [name])
        for dataset in versions.get(each, [])
    ]


def versions_of_dataset(store: Store, name: str) -> list[Dataset]:
    """All versions of a dataset, oldest first. Raises CorruptObjectError, StorageError."""
    log = dataset_log(store, name)
    return [parse_dataset(log.read(number), uri=store.uri) for number in log.numbers()]


@dataclass(frozen=True)
class StoredRun:
    """A run in storage."""

    id: str
    start: RunStart
    progress: Progress
    """Of its newest checkpoint that can be read; where runs begin if there is none."""
    last_sign: datetime | None
    """When something of it was written last, as its documents say: its start, an attempt, a checkpoint, a report."""
    objects: tuple[StoredObject, ...] = field(repr=False)

    @property
    def model(self) -> str:
        """Name of the model that it is a run of."""
        return str(self.start.config["name"])

    @property
    def dataset(self) -> str:
        """Reference of the dataset version that it is trained on."""
        return self.start.dataset.reference

    @property
    def size_bytes(self) -> int:
        """Bytes of all that it has in storage."""
        return sum(item.size_bytes for item in self.objects)

    @property
    def state(self) -> str:
        """How far it has come, in words. Phases count from 0 and epochs from 1, as in the log of training."""
        if self.progress.complete:
            return "finished"
        return f"at phase {self.progress.phase}, epoch {self.progress.epoch + 1}"


def objects_of_runs(store: Store, prefix: str = f"{layout.RUNS}/") -> dict[str, tuple[StoredObject, ...]]:
    """All that lies in runs' folders, by run, in the order of the listing; of ids that begin as `prefix` says."""
    found: dict[str, list[StoredObject]] = defaultdict(list)
    for item in store.list(prefix):
        run_id, *rest = layout.below(layout.RUNS, item.name)
        if rest:
            found[run_id].append(item)
    return {run_id: tuple(objects) for run_id, objects in found.items()}


def datasets_of_runs(store: Store) -> Iterator[tuple[str, str]]:
    """Ids of all runs, sorted, each with the reference of the dataset version that it trained on.

    Runs that are half removed are left out. Raises CorruptObjectError, StorageError.
    """

    def dataset_of(run_id: str) -> str | None:
        try:
            return read_start(store, run_id).dataset.reference
        except ObjectNotFoundError:  # Half removed, or removed since it was listed.
            return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        runs = sorted(objects_of_runs(store))
        for run_id, reference in zip(runs, pool.map(dataset_of, runs), strict=True):
            if reference is not None:
                yield run_id, reference


def datasets_of_models(store: Store) -> Iterator[tuple[str, str]]:
    """All model versions, `flowers/3`, each with the reference of the dataset version that it was trained on."""
    for model in model_names(store):
        for version in list_versions(store, model):
            if version.trained is not None:
                yield f"{model}/{version.number}", version.trained.dataset


def list_runs(store: Store, model: str | None) -> list[StoredRun]:
    """All runs of a model (None: of any), the newest last. Runs without a recorded start come first.

    Raises CorruptObjectError, StorageError.
    """
    return of_model(store, model, objects_of_runs(store))


def of_model(
    store: Store, model: str | None, objects: Mapping[str, Sequence[StoredObject]], *, started_by: str = ""
) -> list[StoredRun]:
    """Those of some runs that are of a model (None: of any), in the order of `list_runs`.

    `started_by`: only those that a night or a sweep started in whose folder's name this is the beginning.
    """

    def is_wanted(start: RunStart) -> bool:
        return model in (None, start.config["name"]) and (start.started_by or "").startswith(started_by)

    with ThreadPoolExecutor(PARALLEL) as pool:
        found = pool.map(lambda run_id: read_run(store, run_id, objects[run_id], is_wanted=is_wanted), objects)
        runs = [run for run in found if run is not None]
    return sorted(runs, key=lambda run: (run.start.started or "", run.id))


def read_run(
    store: Store,
    run_id: str,
    objects: Sequence[StoredObject],
    *,
    is_wanted: Callable[[RunStart], bool] = lambda _: True,
) -> StoredRun | None:
    """A run, if there is one: without its `run.json` it does not exist.

    `objects`: of its folder. `is_wanted`: asked before more than `run.json` is read; None for a run that is not.
    """
    if not any(item.name == layout.run_start(run_id) for item in objects):
        return None
    try:
        start = read_start(store, run_id)
        if not is_wanted(start):
            return None
        folder = layout.run_folder(run_id)
        newest = _newest_readable(Log(store, layout.checkpoints_log(folder)), objects)
        attempt = _newest(Attempt, Log(store, layout.uses_log(folder)), objects)
        report = _newest(ReportEntry, Log(store, layout.reports_log(folder)), objects)
    except ObjectNotFoundError:  # Removed since it was listed.
        return None
    # Earlier releases did not write all of these times down.
    signs = [start.started, _written(newest), attempt and attempt.started, report and report.at]
    return StoredRun(
        id=run_id,
        start=start,
        progress=newest.progress if newest else Progress(),
        last_sign=max((datetime.fromisoformat(sign) for sign in signs if sign), default=None),
        objects=tuple(objects),
    )


def accuracies(store: Store, runs: Iterable[StoredRun]) -> dict[str, tuple[float | None, str | None]]:
    """How good each run is and on which split, by id: by its newest report, else after its last epoch."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return dict(pool.map(lambda run: (run.id, _accuracy(store, run)), runs))


def reported_accuracy(store: Store, run_id: str, number: int, entry: ReportEntry) -> float | None:
    """What a run's report of that number says; None where it is damaged, or of another release. One request.

    Raises StorageError.
    """
    # Late: reports load what measures, which nothing else here needs.
    from transfer.evaluation.report import Report

    name = layout.report_file(layout.run_folder(run_id), number, layout.REPORT)
    try:
        return Report.from_json(store.read_verified(name, entry.files[layout.REPORT])).metrics.accuracy
    except (DatasetError, CorruptObjectError, ObjectNotFoundError):
        return None


def versions_from(store: Store) -> dict[str, tuple[str, ...]]:
    """The versions, as in `flowers/3`, that were published from each run, of all models."""
    found: dict[str, list[str]] = defaultdict(list)
    for model in model_names(store):
        for version in list_versions(store, model):
            if version.trained is not None:
                found[version.trained.run].append(f"{model}/{version.number}")
    return {run_id: tuple(versions) for run_id, versions in found.items()}


def reports_of(store: Store, run: StoredRun) -> list[dict[str, Any]]:
    """A run's reports, oldest first: number, split, and where the page is."""
    folder = layout.run_folder(run.id)
    log = Log(store, layout.reports_log(folder))
    return [
        {
            "report": number,
            "split": log.read_as(ReportEntry, number).split,
            "page": f"{store.uri}/{layout.report_file(folder, number, layout.REPORT_PAGE)}",
        }
        for number in log.numbers()
    ]


def checkpoints_of(store: Store, run: StoredRun) -> list[dict[str, Any]]:
    """A run's checkpoints, oldest first: number, how far they are, and when they were written, if that is known."""
    log = Log(store, layout.checkpoints_log(layout.run_folder(run.id)))
    entries = [(number, log.read_as(CheckpointEntry, number)) for number in log.numbers()]
    return [
        {
            "checkpoint": number,
            "epochs": len(entry.progress.history),
            "of_its_end": entry.progress.complete,
            "written": _written(entry),
        }
        for number, entry in entries
    ]


def _written(checkpoint: CheckpointEntry | None) -> str | None:
    """When a checkpoint was written, if that is known."""
    return checkpoint.written.at if checkpoint and checkpoint.written else None


def _newest_readable(log: Log, objects: Sequence[StoredObject]) -> CheckpointEntry | None:
    """The newest checkpoint; a damaged one is passed over, as training does. None where there is none."""
    numbers = log.numbers_among(objects)
    while numbers:
        number = numbers.pop()
        try:
            return log.read_as(CheckpointEntry, number)
        except CorruptObjectError:
            continue
        except ObjectNotFoundError:
            # A run that came to its end has removed it since it was listed, after it wrote a later one.
            numbers += [later for later in log.numbers() if later > number]
    return None


def _newest(kind: type[Document], log: Log, objects: Sequence[StoredObject]) -> Document | None:
    """The newest entry of another log. None where there is none."""
    numbers = log.numbers_among(objects)
    return log.read_as(kind, numbers[-1]) if numbers else None


def _accuracy(store: Store, run: StoredRun) -> tuple[float | None, str | None]:
    latest = Log(store, layout.reports_log(layout.run_folder(run.id))).latest_as(ReportEntry)
    if latest is not None:
        number, entry = latest
        return reported_accuracy(store, run.id, number, entry), entry.split
    known = run.progress.history[-1].validation_accuracy if run.progress.history else None
    return known, None if known is None else "validation"
