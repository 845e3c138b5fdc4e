"""Pages in storage, and the names of their copies on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.catalog import layout
from transfer.errors import ConfigError, ObjectNotFoundError
from transfer.nights.records import End, Night, list_nights
from transfer.storage import Log, Store
from transfer.tuning.lr_curve import FoundRate, read_rate
from transfer.tuning.records import StoredResult, SweepResult


@dataclass(frozen=True)
class Page:
    """A page in storage. `name`: name of the object. `file`: name of the copy on this machine."""

    name: str
    file: str


def run_page(run_id: str, report: int) -> Page:
    """The page of a run's report with this number."""
    return Page(layout.report_file(layout.run_folder(run_id), report, layout.REPORT_PAGE), f"run {run_id}.html")


def night_page(night: Night, end: End) -> Page:
    """The page of a finished night."""
    return Page(layout.night_page(night.folder, end.page), f"night {night.name} {night.number}.html")


def sweep_page(store: Store, sweep_id: str, result: int) -> tuple[SweepResult, Page]:
    """The result of a sweep with this number, and its page. Raises ObjectNotFoundError, CorruptObjectError."""
    folder = layout.sweep_folder(sweep_id)
    stored = Log(store, layout.results_log(folder)).read_as(StoredResult, result)
    return stored.result, Page(layout.sweep_page(folder, stored.page), f"sweep {sweep_id}.html")


def rate_page(store: Store, test_id: str) -> tuple[FoundRate, Page]:
    """A range test and its page. Raises ObjectNotFoundError, CorruptObjectError."""
    found, page = read_rate(store, test_id)
    return found, Page(page, f"rate {test_id}.html")


def page_about(store: Store, what: str, *, model: str) -> Page:
    """The newest page about a run, sweep or range test by id, or about a night of `model` by number or `night`.

    Raises ConfigError if there is none, CorruptObjectError, StorageError.
    """
    found = None if "/" in what else _night_of(store, what, model) if _is_night(what) else _page_by_id(store, what)
    if found is None:
        raise ConfigError(
            f"There is no page `{what}` in {store.uri}.",
            advice=f"Give `night` or the number of a night of `{model}` that is over, or the id of a run that was "
            "evaluated, of a sweep that ended or of a range test. The index lists them: leave it out.",
        )
    return found


def _is_night(what: str) -> bool:
    return what == "night" or what.isdecimal()


def _night_of(store: Store, what: str, model: str) -> Page | None:
    asked = (night for night in list_nights(store, model) if what == "night" or night.number == int(what))
    over = ((night, end) for night in asked if (end := night.end()) is not None)
    return next((night_page(*found) for found in over), None)


def _page_by_id(store: Store, id_: str) -> Page | None:
    if report := Log(store, layout.reports_log(layout.run_folder(id_))).newest_number():
        return run_page(id_, report)
    if result := Log(store, layout.results_log(layout.sweep_folder(id_))).newest_number():
        return sweep_page(store, id_, result)[1]
    try:
        return rate_page(store, id_)[1]
    except ObjectNotFoundError:
        return None
