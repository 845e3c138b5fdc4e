"""Removing old runs, never one that is in use.

A run's `run.json` goes first: without it a run does not exist, for the commands and jobs here. Then the logs that say
what there is of it, then the files that these name. So a run that is half removed is never taken for a whole one; the
next removal finds what is left, and whoever begins the same run anew finds of it only what is whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from transfer.catalog import layout
from transfer.config import PhaseConfig
from transfer.errors import CorruptObjectError
from transfer.maintenance.runs import StoredRun, objects_of_runs, of_model, versions_from
from transfer.storage import Log, Store, StoredObject, as_model, remove_in_steps
from transfer.training.checkpoints import remove_all, superfluous
from transfer.tuning.records import StoredResult, TrialRecord

AT_WORK = timedelta(days=1)
"""Longer than an epoch takes: a run of which nothing was written for so long is not being worked on."""

# In this order, after `run.json`. Until its checkpoints are gone, the arrays that they name are there.
_LOGS = (layout.reports_log, layout.checkpoints_log, layout.inputs_log, layout.uses_log, layout.base_log)


@dataclass(frozen=True)
class StayingRun:
    """A run beyond the newest that stays, and why."""

    run: StoredRun
    why: str


@dataclass(frozen=True)
class RunCleaning:
    """What `remove_old_runs` removed, or would remove."""

    going: tuple[StoredRun, ...]
    """Oldest first."""
    kept: tuple[StayingRun, ...]
    unfinished: Mapping[str, tuple[StoredObject, ...]]
    """What is left of runs whose removal was cut short, of whatever model, by run."""
    checkpoints: Mapping[str, tuple[StoredObject, ...]]
    """Of finished runs that stay: checkpoints besides the best and the last, by run."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all of it."""
        of_runs = [item for run in self.going for item in run.objects]
        others = [item for part in (self.unfinished, self.checkpoints) for items in part.values() for item in items]
        return sum(item.size_bytes for item in (*of_runs, *others))


def remove_old_runs(
    store: Store, model: str, *, keep: int, at_work: timedelta = AT_WORK, remove: bool = False
) -> RunCleaning:
    """Find, and with `remove` remove, runs of a model beyond the newest `keep` (1 or more) that nothing needs.

    What stays is what `reasons_to_stay` names. Runs of folds do not count as newest: none of them is a model. Raises
    CorruptObjectError for a document that cannot be read: then nothing is removed. StorageError.
    """
    if keep < 1:
        raise ValueError(f"keep (={keep}) must be 1 or more")
    objects = objects_of_runs(store)
    unfinished = {
        run_id: items for run_id, items in objects.items() if layout.run_start(run_id) not in {i.name for i in items}
    }
    runs = of_model(store, model, objects)
    newest = {run.id for run in [run for run in runs if not run.start.is_of_fold][-keep:]}
    old = [run for run in runs if run.id not in newest]
    reasons = reasons_to_stay(store, old, at_work=at_work)
    going = tuple(run for run in old if run.id not in reasons)
    checkpoints = {
        run.id: items for run in runs if run not in going and (items := _superfluous(store, run, at_work=at_work))
    }
    found = RunCleaning(
        going=going,
        kept=tuple(StayingRun(run, reasons[run.id]) for run in old if run.id in reasons),
        unfinished=unfinished,
        checkpoints=checkpoints,
    )
    if remove:
        _remove(store, found)
    return found


def remove_old_nights(
    store: Store, model: str, *, keep: int, but: Collection[str] = (), at_work: timedelta = AT_WORK
) -> tuple[StoredRun, ...]:
    """Remove runs that nights of a model began, beyond the newest `keep`; returns those that went.

    What `reasons_to_stay` names stays, and so do the runs `but`. No night works on the others any more, but
    `transfer train` with the same configuration finds the same run. Raises CorruptObjectError, StorageError.
    """
    objects = objects_of_runs(store, layout.run_folder(f"{model}-"))
    of_nights = of_model(store, model, objects, started_by=f"{layout.nights_log(model)}/")
    old = [run for run in of_nights[:-keep] if run.id not in but]
    reasons = reasons_to_stay(store, old, at_work=at_work)
    going = tuple(run for run in old if run.id not in reasons)
    _remove(store, RunCleaning(going, (), {}, {}))
    return going


def reasons_to_stay(store: Store, runs: Sequence[StoredRun], *, at_work: timedelta) -> dict[str, str]:
    """Why each run that must stay does, by id: a version, an unfinished night or sweep, or somebody at work on it.

    Every version's run stays: what serves, is pinned, or is where a warm start begins is a version that there is.
    """
    versions = versions_from(store) if runs else {}
    since = datetime.now(UTC) - at_work
    unfinished = {
        folder: is_unfinished(store, folder) for folder in {run.start.started_by for run in runs} if folder is not None
    }
    tried = _tried_by_unfinished_sweeps(store) if runs else {}
    reasons = {}
    for run in runs:
        by = run.start.started_by or ""
        if run.id in versions:
            reasons[run.id] = f"published as {', '.join(versions[run.id])}"
        elif unfinished.get(by):
            reasons[run.id] = f"of {by}, which is not over"
        elif run.id in tried:
            reasons[run.id] = f"of {tried[run.id]}, which is not over"
        elif run.last_sign is not None and run.last_sign > since:
            reasons[run.id] = f"perhaps being worked on: last written to at {run.last_sign.isoformat()}"
    return reasons


def remove_run(store: Store, run_id: str, objects: Iterable[StoredObject]) -> None:
    """Remove all that a run has, in an order in which none is taken for whole that is not. Raises StorageError."""
    names = [item.name for item in objects]
    logs = [log(layout.run_folder(run_id)) for log in _LOGS]
    steps: list[list[str]] = [[name for name in names if name == layout.run_start(run_id)]]
    steps += [[name for name in names if name.rpartition("/")[0] == log] for log in logs]
    before = {name for step in steps for name in step}
    remove_in_steps(store, (*steps, [name for name in names if name not in before]))


def _remove(store: Store, found: RunCleaning) -> None:
    for run_id, items in (*found.unfinished.items(), *((run.id, run.objects) for run in found.going)):
        remove_run(store, run_id, items)
    remove_all(store, [item.name for items in found.checkpoints.values() for item in items])


def _superfluous(store: Store, run: StoredRun, *, at_work: timedelta) -> tuple[StoredObject, ...]:
    """Checkpoints that a finished run does not keep; of one that may still be worked on none."""
    is_at_work = run.last_sign is not None and run.last_sign > datetime.now(UTC) - at_work
    if is_at_work or not run.progress.complete:
        return ()
    try:
        phases = [as_model(PhaseConfig, phase, uri=store.uri) for phase in run.start.config["phases"]]
    except CorruptObjectError:  # Of another release, which said it otherwise: they stay.
        return ()
    return tuple(superfluous(store, layout.run_folder(run.id), phases))


def is_unfinished(store: Store, folder: str) -> bool:
    """Whether a sweep has no final result, or a night is not over that may be gone on with: the latest one."""
    if folder.startswith(f"{layout.SWEEPS}/"):
        latest = Log(store, layout.results_log(folder)).latest_as(StoredResult)
        return latest is None or not latest[1].result.is_final
    nights, _, number = folder.rpartition("/")
    is_latest = Log(store, nights).newest_number() == int(number)
    return is_latest and not store.exists(layout.night_end(folder))


def _tried_by_unfinished_sweeps(store: Store) -> dict[str, str]:
    """Runs that trials of unfinished sweeps were, with the sweep's folder; an earlier job may have begun them."""
    trials: dict[str, set[int]] = {}
    for item in store.list(f"{layout.SWEEPS}/"):
        known = layout.trial_in(item.name)
        if known is not None:
            sweep, number = known
            trials.setdefault(layout.sweep_folder(sweep), set()).add(number)
    found = {}
    for folder, numbers in trials.items():
        if is_unfinished(store, folder):
            for trial in numbers:
                latest = Log(store, layout.trial_log(folder, trial)).latest_as(TrialRecord)
                if latest is not None and latest[1].run_id:
                    found[latest[1].run_id] = folder
    return found
