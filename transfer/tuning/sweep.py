"""A sweep in storage: one search over one configuration on one dataset version.

sweeps/<sweep id>/sweep.json                  configuration and dataset version
sweeps/<sweep id>/started/<n>.json            values of trial n, as it was first started
sweeps/<sweep id>/trials/<n>/<k>.json         what came out of trial n; a later attempt may take it further
sweeps/<sweep id>/packs/<pack key>/…          checkpoints of trials that are trained together
sweeps/<sweep id>/results/<k>.json            the whole sweep, each time that it ended; names the page beside it
sweeps/<sweep id>/results/<sha256>.html       the page

Each trial is a run of its own (`training/run.py`), so its checkpoints lie there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from transfer.backbone.identity import base_digests
from transfer.config import Config
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.errors import AlreadyExistsError, BaseChangedError
from transfer.storage import Log, Store, open_store, put_content, put_document
from transfer.training.run import identity
from transfer.tuning.records import SweepResult, TrialRecord
from transfer.tuning.space import bases_within_reach, sweep_of

# What may change between two attempts of the same sweep without changing what is tried.
_NOT_TRIED = {"concurrency", "max_failures", "mlflow", "gpus_per_trial"}


@dataclass(frozen=True)
class Sweep:
    """A sweep, as any of its processes can open it."""

    id: str
    config: Config
    dataset_name: str
    dataset_number: int

    @property
    def folder(self) -> str:
        """In the store."""
        return f"sweeps/{self.id}"

    @property
    def store(self) -> Store:
        """The sweep's storage, opened anew: this object travels between processes."""
        return open_store(self.config.storage)

    @property
    def dataset(self) -> Dataset:
        """The dataset version that all trials are trained on."""
        return load_dataset(self.store, self.dataset_name, self.dataset_number)

    def check_bases(self, dataset: Dataset) -> None:
        """Raise BaseChangedError when a file of a base is not the one, here and now, that the sweep began with.

        Trials on either would be compared as if they had been trained on the same.
        """
        if _id_of(self.config, _described(self.config, dataset)) != self.id:
            raise BaseChangedError(
                f"A file of base.model or base.weights is another one here than when sweep `{self.id}` began, or is "
                "missing.",
                advice="Bring it back, or repeat the command for a sweep on the file that is there now; each machine "
                "must have the same.",
            )


def open_sweep(store: Store, config: Config, dataset: Dataset) -> Sweep:
    """Start the sweep, or find the one of the same configuration and dataset version, with the same files of bases."""
    described = _described(config, dataset)
    sweep_id = _id_of(config, described)
    put_document(store, f"sweeps/{sweep_id}/sweep.json", {**described, "dataset": dataset.reference})
    return Sweep(sweep_id, config, dataset.name, dataset.number)


def _described(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What decides what comes out of a sweep."""
    tried = sweep_of(config).model_dump(mode="json", exclude=_NOT_TRIED)
    described = {"learned": identity(config, dataset), "sweep": tried}
    searched = [base_digests(base, storage=config.storage) for base in bases_within_reach(config)]
    return {**described, "base_digests": searched} if any(searched) else described


def _id_of(config: Config, described: dict[str, Any]) -> str:
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
    return f"{config.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class SweepRecords:
    """Reads and writes what a sweep leaves in storage. Only its driver writes."""

    def __init__(self, sweep: Sweep) -> None:
        self._store = sweep.store
        self._folder = sweep.folder
        self._started = Log(self._store, f"{sweep.folder}/started")
        self._results = Log(self._store, f"{sweep.folder}/results")

    def started(self) -> list[dict[str, Any]]:
        """Values of the trials that were started, by their numbers, without gaps from 1 on."""
        return [self._started.read(number)["values"] for number in self._started.numbers()]

    def note_start(self, number: int, values: dict[str, Any]) -> None:
        """Write down that a trial was started. It may have been before."""
        try:
            self._started.append({"values": values}, number=number)
        except AlreadyExistsError:
            # Values of a population change while it is trained; its first ones count.
            return

    def trial(self, number: int) -> TrialRecord | None:
        """What came out of a trial so far."""
        found = self._trial(number).latest()
        return TrialRecord.model_validate(found[1]) if found else None

    def ended(self, *, but: Collection[int] = ()) -> dict[int, TrialRecord]:
        """What came out of the trials so far, by number, without those in `but`."""
        found = {number: self.trial(number) for number in self._started.numbers() if number not in but}
        return {number: record for number, record in found.items() if record is not None}

    def note_end(self, record: TrialRecord) -> TrialRecord:
        """Write down what came out of a trial, unless that is written already; returns what stands.

        An earlier attempt may have come further with a trial than one that ran out of its budget, or failed.
        """
        earlier = self.trial(record.number)
        if earlier is not None and (earlier == record or _is_further(earlier, record)):
            return earlier
        self._trial(record.number).append(record.model_dump(mode="json"))
        return record

    def result(self) -> tuple[SweepResult, str] | None:
        """The newest result and the address of its page."""
        found = self._results.latest()
        if found is None:
            return None
        return SweepResult.model_validate(found[1]["result"]), self._page_uri(found[1]["page"])

    def put_result(self, result: SweepResult) -> str:
        """Write a result and its page; returns the page's address."""
        from transfer.tuning.page import render

        _, digest = put_content(self._store, f"{self._folder}/results", ".html", render(result).encode())
        self._results.append({"result": result.model_dump(mode="json"), "page": digest})
        return self._page_uri(digest)

    def _trial(self, number: int) -> Log:
        return Log(self._store, f"{self._folder}/trials/{number:08d}")

    def _page_uri(self, digest: str) -> str:
        return f"{self._store.uri}/{self._folder}/results/{digest}.html"


def _is_further(earlier: TrialRecord, record: TrialRecord) -> bool:
    if record.values != earlier.values:
        return False
    if record.status == "failed":
        # A loss that is not finite says something of the trial itself: nobody could train it to its end.
        return record.failed_by != "loss" and earlier.value is not None and len(earlier.rows) >= len(record.rows)
    if record.stopped_by in (None, "scheduler") or earlier.failed_by == "memory":
        return False
    return earlier.status != "stopped" or len(earlier.rows) > len(record.rows)
