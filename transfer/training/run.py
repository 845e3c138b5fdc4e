"""A run: one configuration trained on one dataset version, with all it leaves behind in storage.

runs/<run id>/run.json               configuration, dataset version, package versions
runs/<run id>/checkpoints/<n>.json   the log of checkpoints, each naming its arrays
runs/<run id>/arrays/<sha256>.npz    weights and optimiser state
runs/<run id>/base/00000001.json  digest of the base as it was pretrained (`pinned_base.py`)
runs/<run id>/inputs/00000001.json   what each phase trains on: pixels, or what is kept of its frozen part
runs/<run id>/uses/<n>.json          attempts that rely on what is kept
runs/<run id>/tensorboard/…          event files
runs/<run id>/reports/<n>/…          evaluations
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from transfer.backbone.identity import base_digests
from transfer.config import NOT_LEARNED, Config
from transfer.dataset.manifest import Dataset
from transfer.errors import AlreadyExistsError, RunConflictError, TrainingError
from transfer.storage import Log, Store, as_model, put_document, read_document
from transfer.storage.log import Number
from transfer.training.folds import Fold


class _DatasetVersion(BaseModel):
    name: str
    number: Number


class _Started(BaseModel):
    """What `run.json` says."""

    identity: dict[str, Any]
    config: dict[str, Any]
    dataset: _DatasetVersion


@dataclass(frozen=True)
class Run:
    """A run in storage."""

    store: Store
    id: str
    config: Config
    dataset_name: str
    dataset_number: int
    fold: Fold | None = field(default=None, kw_only=True)
    """What a cross-validated trial's run is validated on, instead of the validation split."""

    @property
    def prefix(self) -> str:
        """Folder of the run in storage."""
        return f"runs/{self.id}"

    @property
    def checkpoints(self) -> Log:
        """The log of checkpoints."""
        return Log(self.store, f"{self.prefix}/checkpoints")

    @property
    def reports(self) -> Log:
        """The log of evaluations."""
        return Log(self.store, f"{self.prefix}/reports")

    @property
    def base(self) -> Log:
        """The log whose first entry says which base the run began with."""
        return Log(self.store, f"{self.prefix}/base")

    @property
    def inputs(self) -> Log:
        """The log whose first entry says what each phase trains on."""
        return Log(self.store, f"{self.prefix}/inputs")

    @property
    def uses(self) -> Log:
        """The log of attempts that rely on kept activations."""
        return Log(self.store, f"{self.prefix}/uses")

    def newest_report(self, split: str | None = None) -> int | None:
        """Number of the newest evaluation, of any split or of this one, or None."""
        numbers = reversed(self.reports.numbers())
        return next((each for each in numbers if split is None or self.reports.read(each)["split"] == split), None)


def run_id_for(config: Config, dataset: Dataset) -> str:
    """A name decided by what would be trained, so that repeating a command continues or finds its run."""
    digest = hashlib.sha256(_canonical(identity(config, dataset)).encode()).hexdigest()
    return f"{config.name}-{digest[:12]}"


def open_run(
    store: Store, config: Config, dataset: Dataset, *, run_id: str | None = None, fold: Fold | None = None
) -> Run:
    """Start the run, or find the one that was started with the same configuration and dataset version.

    The run of a fold has an id of its own. Raises RunConflictError, listing the differing keys, when a run of that id
    was started with another configuration.
    """
    run_id = run_id or run_id_for(config, dataset)
    learned = identity(config, dataset)
    if fold is not None:
        run_id, learned = f"{run_id}-{fold}", {**learned, "fold": str(fold)}
    document = {
        "identity": learned,
        "config": config.model_dump(mode="json"),
        "dataset": {"name": dataset.name, "number": dataset.number},
        "versions": {package: version(package) for package in ("keras", "ray", "tensorflow", "transfer")},
    }
    try:
        put_document(store, f"runs/{run_id}/run.json", document)
    except AlreadyExistsError:
        differing = _differing_keys(_read(store, run_id).identity, learned)
        if differing:
            raise RunConflictError(
                f"Run `{run_id}` was started with another configuration; different: {', '.join(differing)}.",
                advice="Give another --run-id, or none, or go back to the configuration it was started with"
                + (", its files included." if any(key.endswith(".sha256") for key in differing) else "."),
            ) from None
    return Run(store, run_id, config, dataset.name, dataset.number, fold=fold)


def load_run(store: Store, run_id: str, config: Config) -> Run:
    """Find a run by its id; `config` says where storage is, the run's own configuration says what was trained.

    Raises TrainingError when there is no such run, or when it only served to cross-validate a trial.
    """
    if not store.exists(f"runs/{run_id}/run.json"):
        raise TrainingError(
            f"There is no run `{run_id}` in {store.uri}.", advice="`transfer train` prints the run id it works on."
        )
    started = _read(store, run_id)
    if "fold" in started.identity:
        raise TrainingError(
            f"Run `{run_id}` trained on all but one fold to cross-validate a trial; it is no model to use.",
            advice="`transfer train` with the trial's values trains one on the whole training split.",
        )
    changed = config.model_dump(mode="json", include=set(NOT_LEARNED))
    own = as_model(Config, {**started.config, **changed}, uri=store.uri)
    base = own.base.model_copy(update={"accept_head": config.base.accept_head})
    own = own.model_copy(update={"base": base})
    return Run(store, run_id, own, started.dataset.name, started.dataset.number)


def identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What decides what a run learns: the configuration, the dataset version, and the files of the base by content.

    Raises what `base_digests` raises.
    """
    learned = config.model_dump(mode="json", exclude=set(NOT_LEARNED))
    # A permission: it decides whether a base is refused, and not what is learned on it.
    del learned["base"]["accept_head"]
    # The dataset version says which images were used; where they once came from does not matter any more.
    learned["dataset"] = dataset.reference
    for key, sha256 in base_digests(config.base, storage=config.storage).items():
        learned["base"][key] = {"name": learned["base"][key], "sha256": sha256}
    return learned


def started_identity(run: Run) -> dict[str, Any]:
    """The `identity` that a run was started with. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    return _read(run.store, run.id).identity


def _read(store: Store, run_id: str) -> _Started:
    return as_model(_Started, read_document(store, f"runs/{run_id}/run.json"), uri=store.uri)


def _differing_keys(left: Any, right: Any, path: str = "") -> list[str]:
    """Dotted keys at which two identities differ."""
    if isinstance(left, str) and isinstance(right, dict) and "sha256" in right:
        # A run of an earlier release, which was told apart by the names of files only.
        right = right["name"]
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(set(left) | set(right))
        return [found for key in keys for found in _differing_keys(left.get(key), right.get(key), f"{path}.{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            found
            for index, (a, b) in enumerate(zip(left, right, strict=True))
            for found in _differing_keys(a, b, f"{path}[{index}]")
        ]
    return [] if left == right else [path.removeprefix(".")]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
