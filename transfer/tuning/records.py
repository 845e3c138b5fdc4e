"""The records of trials and of whole sweeps in storage, and trials in words.

Each trial has its own run (`training/run.py`), which holds its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, model_validator

from transfer.backbone.identity import base_identity
from transfer.catalog import layout
from transfer.catalog.run import EpochRow
from transfer.config import Config, Decides, deciding
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import AlreadyExistsError, BaseChangedError
from transfer.evaluation.metrics import Interval, wilson_interval
from transfer.runtime.numbers import percent
from transfer.storage import Log, Store, open_store, put_content, put_document
from transfer.training.run import identity
from transfer.tuning.space import bases_within_reach, sweep_of


def value_text(value: Any) -> str:
    """A value of the configuration as in YAML, numbers with three digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    return json.dumps(value, ensure_ascii=False)


def metric_text(value: float | None, metric: str) -> str:
    """A value of the sweep's metric in words; a dash for None."""
    if value is None:
        return "–"
    return percent(value) if metric == "accuracy" else f"{value:.4f}"


def depth_text(depth: Sequence[int | str]) -> str:
    """`unfreeze` of each phase, one after the other: `0 → 2`."""
    return " → ".join(map(str, depth))


def keys_of(values: Iterable[dict[str, Any]]) -> list[str]:
    """All keys of the trials' values, in the order in which they appear first."""
    return list(dict.fromkeys(key for each in values for key in each))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last part, with as many parts before it as distinguish it from the other keys."""
    names = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        lengths = range(1, len(parts))
        length = next((n for n in lengths if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        names[key] = ".".join(parts[-length:])
    return names


def is_better(value: float, than: float, metric: str) -> bool:
    """Whether one value of the metric is better than another."""
    return value > than if metric == "accuracy" else value < than


BudgetKey = Literal["target", "max_epochs", "max_seconds"]
"""The key in section `sweep` that ended a whole sweep."""

FailedBy = Literal["memory", "loss"]
"""The error that ended a trial: too little memory, or a loss that was not finite."""

Status = Literal["finished", "stopped", "failed"]
# Reasons in records of earlier releases, which have no `stopped_by`.
_REASONS: dict[str, BudgetKey] = {
    "reached the target": "target",
    "epochs is spent": "max_epochs",
    "seconds is spent": "max_seconds",
}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrialRecord(_Record):
    """One trial that ended."""

    number: int
    """Number of the trial, from 1, in the order in which trials were made."""
    values: dict[str, Any]
    """The trial's values, by dotted key of the configuration."""
    run_id: str
    """Id of the trial's run; empty for a cross-validated trial, whose folds are runs."""
    status: Status
    """`stopped`: the scheduler or a budget ended the trial before its last epoch."""
    reason: str | None = None
    """Why the trial failed or was stopped, for people."""
    stopped_by: Literal["scheduler"] | BudgetKey | None = None
    """What stopped the trial; None if it was not stopped."""
    failed_by: FailedBy | None = None
    """The kind of error with which the trial failed; None if it did not fail, or failed with another error."""
    rows: tuple[EpochRow, ...] = ()
    """The trial's epochs; for a cross-validated trial means over folds."""
    value: float | None = None
    """The sweep's metric on the validation split, for the weights with which the trial ended; None if it failed."""
    depth: list[int | str]
    """`unfreeze` of each phase."""
    trained_flops: float = 0.0
    """Multiply-adds of the trained part for one image in one pass, in the phase in which they are most."""
    packed_with: int = 1
    """Number of trials, including this one, that were trained as one program."""

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_release(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("status") == "stopped" and "stopped_by" not in document:
            reason = document.get("reason") or ""
            by = next((budget for words, budget in _REASONS.items() if words in reason), "scheduler")
            return {**document, "stopped_by": by}
        return document

    @property
    def can_go_on(self) -> bool:
        """Whether another attempt may get further: the trial ended by a time budget, or by too little memory."""
        return self.stopped_by == "max_seconds" or self.failed_by == "memory"

    @property
    def seconds(self) -> float:
        """Seconds of the trial's epochs; for a packed trial, its share of them."""
        return sum(row.seconds for row in self.rows) / self.packed_with


class SweepResult(_Record):
    """The result of a sweep that ended: its trials and its winner."""

    id: str
    name: str
    dataset: str
    metric: Literal["accuracy", "loss"]
    search: str
    scheduler: str
    folds: int = 0
    """Number of folds over which each trial's figures are means; 0 if they are figures of the validation split."""
    images: int | None = None
    """Number of images on which each trial is validated, over all folds; None in results of earlier releases."""
    trials: tuple[TrialRecord, ...]
    winner: int | None
    """Number of the winning trial. The test split is not used to choose it."""
    ended_by: str
    """Why the sweep ended: every trial ended, a budget was spent, or the target was reached."""
    is_final: bool = True
    """Whether another attempt would add nothing."""
    seconds: float
    """Seconds from the start of the first trial to the end, in the attempt that ended the sweep."""

    def interval(self, trial: TrialRecord) -> Interval | None:
        """95 % interval of a trial's accuracy; None for a loss, without a value, or if `images` is not known."""
        if self.metric != "accuracy" or trial.value is None or not self.images:
            return None
        return wilson_interval(round(trial.value * self.images), self.images)

    @property
    def counts(self) -> dict[Status, int]:
        """Number of trials with each status."""
        return {status: sum(trial.status == status for trial in self.trials) for status in get_args(Status)}


class StoredResult(_Record):
    """An entry of the log of a sweep's results."""

    result: SweepResult
    page: str
    """SHA-256 of the page."""


def nothing_to_add(trials: Iterable[TrialRecord], *, spent: BudgetKey | None) -> bool:
    """Whether a sweep that ended with these trials is final: by its target or epochs, or if no trial can continue."""
    if spent is None:
        return not any(trial.can_go_on for trial in trials)
    return spent != "max_seconds"


def best_first(trials: Iterable[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials from best to worst; the first one is the winner.

    First come trials that finished or were stopped by the end of the sweep, by value. Among equal values the one that
    trains least comes first, then one that finished, then the lower number. Next come trials that a scheduler stopped:
    their values are of early epochs, in which other trials were better. Last come trials without a value.
    """
    sign = -1.0 if metric == "accuracy" else 1.0

    def place(trial: TrialRecord) -> tuple[bool, bool, float, float, bool, int]:
        value = sign * (trial.value or 0.0)
        is_out = trial.stopped_by == "scheduler"
        return trial.value is None, is_out, value, trial.trained_flops, trial.status != "finished", trial.number

    return sorted(trials, key=place)


def winner_of(trials: Iterable[TrialRecord], metric: str) -> TrialRecord | None:
    """The best trial; None if no trial has a value."""
    best = next(iter(best_first(trials, metric)), None)
    return best if best is not None and best.value is not None else None


@dataclass(frozen=True)
class Sweep:
    """A sweep in storage, which each of its processes can open."""

    id: str
    config: Config
    dataset_name: str
    dataset_number: int

    @property
    def folder(self) -> str:
        """In the store."""
        return layout.sweep_folder(self.id)

    @property
    def store(self) -> Store:
        """The sweep's storage, opened on each call, because this object is sent between processes."""
        return open_store(self.config.storage)

    @property
    def dataset(self) -> Dataset:
        """The dataset version that all trials are trained on."""
        return load_dataset(self.store, self.dataset_name, self.dataset_number)

    def check_bases(self, dataset: Dataset) -> None:
        """Raise BaseChangedError if a file of a base is missing here, or is not the one with which the sweep began.

        Otherwise trials on different bases would be compared as if they had the same one.
        """
        if _id_of(self.config, _described(self.config, dataset)) != self.id:
            raise BaseChangedError(
                f"A file of base.model or base.weights is missing here, or is not the one with which sweep `{self.id}` "
                "began.",
                advice="All machines must have the same file. If it was replaced, bring the old file back, or repeat "
                "the command to start a sweep with the new one.",
            )


def open_sweep(store: Store, config: Config, dataset: Dataset) -> Sweep:
    """Start the sweep, or find the one with the same configuration, dataset version and files of bases."""
    described = _described(config, dataset)
    sweep_id = _id_of(config, described)
    put_document(store, layout.sweep_start(layout.sweep_folder(sweep_id)), {**described, "dataset": dataset.reference})
    return Sweep(sweep_id, config, dataset.name, dataset.number)


def _described(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Everything that decides the result of a sweep. Files of bases are described by their content, not their paths."""
    tried = deciding(sweep_of(config), Decides.SEARCH)
    for key, bases in bases_within_reach(config).items():
        tried["space"][key]["choices"] = [base_identity(base, storage=config.storage) for base in bases]
    return {"learned": identity(config, dataset), "sweep": tried}


def _id_of(config: Config, described: dict[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return f"{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class SweepRecords:
    """Reads and writes the records of a sweep. Only the sweep's driver writes."""

    def __init__(self, sweep: Sweep) -> None:
        self._store = sweep.store
        self._folder = sweep.folder
        self._started = Log(self._store, layout.started_log(sweep.folder))
        self._results = Log(self._store, layout.results_log(sweep.folder))

    def started(self) -> list[dict[str, Any]]:
        """Values of the trials that were started, by ascending number; the numbers begin at 1 and have no gaps."""
        return [self._started.read(number)["values"] for number in self._started.numbers()]

    def note_start(self, number: int, values: dict[str, Any]) -> None:
        """Record that a trial was started, unless that is recorded already."""
        try:
            self._started.append({"values": values}, number=number)
        except AlreadyExistsError:
            # The values of a population's trials change; the first ones count.
            return

    def trial(self, number: int) -> TrialRecord | None:
        """The newest record of a trial; None if there is none."""
        found = self._trial(number).latest_as(TrialRecord)
        return found[1] if found else None

    def ended(self, *, but: Collection[int] = ()) -> dict[int, TrialRecord]:
        """The newest records of the trials, by number, without those in `but`."""
        found = {number: self.trial(number) for number in self._started.numbers() if number not in but}
        return {number: record for number, record in found.items() if record is not None}

    def note_end(self, record: TrialRecord) -> TrialRecord:
        """Record the result of a trial, and return the record that counts.

        The record of an earlier attempt still counts if that attempt got further: this one may have failed, or a budget
        may have ended it.
        """
        earlier = self.trial(record.number)
        if earlier is not None and (earlier == record or _stands(earlier, record)):
            return earlier
        self._trial(record.number).append(record.model_dump(mode="json"))
        return record

    def result(self) -> tuple[SweepResult, str] | None:
        """The newest result and the address of its page; None if there is none."""
        found = self._results.latest_as(StoredResult)
        return None if found is None else (found[1].result, self._page_uri(found[1].page))

    def put_result(self, result: SweepResult, *, page: str) -> str:
        """Write a result and its page (HTML). Returns the page's address."""
        _, digest = put_content(self._store, partial(layout.sweep_page, self._folder), page.encode())
        self._results.append(StoredResult(result=result, page=digest).model_dump(mode="json"))
        return self._page_uri(digest)

    def _trial(self, number: int) -> Log:
        return Log(self._store, layout.trial_log(self._folder, number))

    def _page_uri(self, digest: str) -> str:
        return f"{self._store.uri}/{layout.sweep_page(self._folder, digest)}"


def _stands(earlier: TrialRecord, record: TrialRecord) -> bool:
    """Whether an earlier record of the same values counts, because it is of an attempt that got further."""
    was_decided = record.status == "finished" or record.stopped_by == "scheduler" or record.failed_by == "loss"
    return not was_decided and earlier.values == record.values and _reach(earlier) > _reach(record)


def _reach(record: TrialRecord) -> tuple[int, int]:
    """A measure of how far an attempt got: first its kind of end, then its epochs."""
    if record.status == "failed" and record.failed_by != "loss":
        # An error of the machine or of storage says nothing about the trial.
        return 0, len(record.rows)
    return 1 if record.status == "stopped" else 2, len(record.rows)
