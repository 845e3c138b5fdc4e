"""The contents of a storage for its index: the newest models, nights, sweeps, runs and range tests.

Listings show which exist and which are newest. Only the documents of the shown rows are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.catalog.run import ReportEntry
from transfer.config import unfreeze_title
from transfer.errors import ObjectNotFoundError, RegistryError
from transfer.maintenance.runs import objects_of_runs, reported_accuracy
from transfer.nights.records import read_night
from transfer.pages.page import Page, night_page, rate_page, run_page, sweep_page
from transfer.registry.describe import DescribedVersion, describe_version
from transfer.registry.versions import Promotion, current_promotion
from transfer.storage import PARALLEL, Log, Store, StoredObject
from transfer.training.run import read_start
from transfer.tuning.records import metric_text, value_text

ROWS = 50
"""Largest number of rows of a table. Older ones are only counted."""

Key = TypeVar("Key")
Row = TypeVar("Row")


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """The rows of a table, the newest first, and how many more there are."""

    shown: tuple[Row, ...]
    more: int = 0


@dataclass(frozen=True)
class ModelRow:
    """A model: the number of its versions, the version that serves, and its promotion."""

    name: str
    versions: int
    promotion: Promotion | None
    serving: ModelVersion | None


@dataclass(frozen=True)
class RunRow:
    """An evaluated run.

    `accuracy` and `split`: of its newest report; `accuracy` is None if that cannot be read. `started_by`: folder of the
    sweep or the night. `page`: page of that report.
    """

    id: str
    model: str
    dataset: str
    accuracy: float | None
    split: str
    started_by: str
    page: Page

    @property
    def origin(self) -> str:
        """What started the run, in words: the id of a sweep, or `night 3`."""
        kind, _, name = self.started_by.partition("/")
        return f"night {int(name.rpartition('/')[2])}" if kind == layout.NIGHTS else name


@dataclass(frozen=True)
class SweepRow:
    """A finished sweep. `winner`: run id of the winning trial, `best`: its metric in words."""

    id: str
    model: str
    dataset: str
    trials: int
    winner: str
    metric: str
    best: str
    page: Page


@dataclass(frozen=True)
class RateRow:
    """A learning-rate range test. `trained`: what its phase trains, in words."""

    id: str
    model: str
    dataset: str
    phase: int
    trained: str
    suggestion: str
    page: Page


@dataclass(frozen=True)
class NightRow:
    """A night. An unfinished night has neither an end nor a page."""

    model: str
    number: int
    started: str
    ended: str | None
    outcome: str
    reason: str
    page: Page | None


@dataclass(frozen=True)
class Contents:
    """The contents of a storage. Models are sorted by name, everything else has the newest first.

    `not_evaluated`: number of runs that were not evaluated, such as most trials of a sweep. `run_pages`: pages of the
    evaluated runs that a row names, by id.
    """

    storage: str
    models: Rows[ModelRow]
    versions: Rows[DescribedVersion]
    nights: Rows[NightRow]
    sweeps: Rows[SweepRow]
    rates: Rows[RateRow]
    runs: Rows[RunRow]
    not_evaluated: int
    run_pages: Mapping[str, Page]

    @property
    def pages(self) -> list[Page]:
        """Every page that the index links to."""
        nights, sweeps, rates = self.nights.shown, self.sweeps.shown, self.rates.shown
        return [
            *(night.page for night in nights if night.page),
            *(sweep.page for sweep in sweeps),
            *(rate.page for rate in rates),
            *self.run_pages.values(),
        ]


def read_contents(store: Store) -> Contents:
    """Read the contents of a storage. Raises CorruptObjectError, StorageError."""
    runs = {
        run_id: objects
        for run_id, objects in objects_of_runs(store).items()
        if any(item.name == layout.run_start(run_id) for item in objects)
    }
    reports = _last_of_each(
        _numbered(chain.from_iterable(runs.values()), lambda run: layout.reports_log(layout.run_folder(run)))
    )
    results = _last_of_each(
        _numbered(_all(store, layout.SWEEPS), lambda sweep: layout.results_log(layout.sweep_folder(sweep)))
    )
    nights_begun = _numbered(_all(store, layout.NIGHTS), layout.nights_log)
    latest_nights = _last_of_each(nights_begun)
    versions = _numbered(_all(store, layout.MODELS), layout.versions_log)
    curves = re.compile(layout.pattern(lambda test: layout.curve(layout.range_test_folder(test))))
    tests = {found[1]: item for item in _all(store, layout.RANGE_TESTS) if (found := curves.fullmatch(item.name))}
    with ThreadPoolExecutor(PARALLEL) as pool:

        def rows_of(found: Mapping[Key, StoredObject], read: Callable[[Store, Key], Row]) -> Rows[Row]:
            newest = sorted(found, key=lambda key: (found[key].modified_s, key), reverse=True)
            rows = pool.map(lambda key: _unless_removed(read, store, key), newest[:ROWS])
            return Rows(tuple(row for row in rows if row is not None), len(newest[ROWS:]))

        nights = rows_of(nights_begun, lambda store, key: _night(store, key, is_latest=key in latest_nights))
        sweeps, rates = rows_of(results, _sweep), rows_of(tests, _rate)
        evaluated, published = rows_of(reports, _run), rows_of(versions, _version)
        counts = Counter(model for model, _ in versions)
        named = {row.model for rows in (nights, sweeps, rates, evaluated) for row in rows.shown}
        models = sorted({*counts, *named})
        shown = pool.map(lambda name: _model(store, name, counts[name]), models[:ROWS])
        of_models = Rows(tuple(shown), len(models[ROWS:]))
    wanted = {
        *(run.id for run in evaluated.shown),
        *(sweep.winner for sweep in sweeps.shown),
        *(each.version.trained.run for each in published.shown if each.version.trained),
    }
    return Contents(
        storage=store.uri,
        models=of_models,
        versions=published,
        nights=nights,
        sweeps=sweeps,
        rates=rates,
        runs=evaluated,
        not_evaluated=len(runs) - len(reports),
        run_pages={run_id: run_page(run_id, number) for run_id, number in reports if run_id in wanted},
    )


def _all(store: Store, folder: str) -> Iterator[StoredObject]:
    return store.list(f"{folder}/")


def _numbered(objects: Iterable[StoredObject], log: Callable[[str], str]) -> dict[tuple[str, int], StoredObject]:
    """The objects that are entries of such logs, by the id in the log's name and the number of the entry."""
    pattern = re.compile(layout.entry_pattern(log))
    matches = ((pattern.fullmatch(item.name), item) for item in objects)
    return {(match[1], int(match[2])): item for match, item in matches if match}


def _last_of_each(entries: Mapping[tuple[str, int], StoredObject]) -> dict[tuple[str, int], StoredObject]:
    """For each id only the entry with the highest number."""
    last = {id_: (id_, number) for id_, number in sorted(entries)}
    return {key: entries[key] for key in last.values()}


def _unless_removed(read: Callable[[Store, Key], Row], store: Store, key: Key) -> Row | None:
    """Read a row; None if its object was removed since it was listed."""
    try:
        return read(store, key)
    except (ObjectNotFoundError, RegistryError):
        return None


def _model(store: Store, name: str, versions: int) -> ModelRow:
    promotion = current_promotion(store, name)
    serving = _unless_removed(_version, store, (name, promotion.version)) if promotion else None
    return ModelRow(name, versions, promotion, serving.version if serving else None)


def _version(store: Store, key: tuple[str, int]) -> DescribedVersion:
    return describe_version(store, *key)


def _run(store: Store, key: tuple[str, int]) -> RunRow:
    run_id, report = key
    start = read_start(store, run_id)
    entry = Log(store, layout.reports_log(layout.run_folder(run_id))).read_as(ReportEntry, report)
    return RunRow(
        id=run_id,
        model=str(start.config["name"]),
        dataset=start.dataset.reference,
        accuracy=reported_accuracy(store, run_id, report, entry),
        split=entry.split,
        started_by=start.started_by or "",
        page=run_page(run_id, report),
    )


def _sweep(store: Store, key: tuple[str, int]) -> SweepRow:
    result, page = sweep_page(store, *key)
    winner = next((trial for trial in result.trials if trial.number == result.winner), None)
    return SweepRow(
        id=result.id,
        model=result.name,
        dataset=result.dataset,
        trials=len(result.trials),
        winner=winner.run_id if winner else "",
        metric=result.metric,
        best=metric_text(winner.value if winner else None, result.metric),
        page=page,
    )


def _night(store: Store, key: tuple[str, int], *, is_latest: bool) -> NightRow:
    night = read_night(store, *key, is_latest=is_latest)
    standing = night.standing()
    page = night_page(night, standing.end) if standing.end else None
    ended = standing.end.ended if standing.end else None
    return NightRow(*key, night.started, ended, standing.outcome, standing.reason, page)


def _rate(store: Store, test_id: str) -> RateRow:
    found, page = rate_page(store, test_id)
    return RateRow(
        id=found.id,
        model=found.name,
        dataset=found.dataset,
        phase=found.phase,
        trained=unfreeze_title(found.unfreeze, rank=found.rank),
        suggestion=value_text(found.suggestion),
        page=page,
    )
