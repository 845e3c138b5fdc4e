"""Runs in storage, and the base that each run began with. Needs no TensorFlow.

A run's id covers the files of its base (`backbone/identity.py`). The digest of the loaded base, as it was pretrained,
also covers what is known only after loading: the module behind a handle, the weights behind `imagenet`, and what a
release of Keras builds.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from transfer import __version__
from transfer.backbone.identity import base_digests, base_identity
from transfer.catalog import layout
from transfer.catalog.run import ReportEntry, RunStart
from transfer.config import NOT_LEARNED, Config, Decides, deciding
from transfer.config.image_input import depth_title
from transfer.dataset.manifest import Dataset
from transfer.errors import (
    AlreadyExistsError,
    BaseChangedError,
    ConfigError,
    ObjectNotFoundError,
    RunConflictError,
    TrainingError,
)
from transfer.storage import Log, Store, as_model, now_utc, put_document, read_document
from transfer.training.rows import Fold


@dataclass(frozen=True)
class Run:
    """A run in storage."""

    store: Store
    id: str
    config: Config
    dataset_name: str
    dataset_number: int
    fold: Fold | None = field(default=None, kw_only=True)
    """For a run of a cross-validated trial: the fold that it validates on, instead of the validation split."""

    @property
    def folder(self) -> str:
        """Folder of the run in storage."""
        return layout.run_folder(self.id)

    @property
    def checkpoints(self) -> Log:
        """The log of checkpoints."""
        return Log(self.store, layout.checkpoints_log(self.folder))

    @property
    def reports(self) -> Log:
        """The log of evaluations."""
        return Log(self.store, layout.reports_log(self.folder))

    @property
    def base(self) -> Log:
        """The log whose first entry has the digest of the base that the run began with."""
        return Log(self.store, layout.base_log(self.folder))

    @property
    def inputs(self) -> Log:
        """The log whose first entry has the choice between pixels and cached features for each phase."""
        return Log(self.store, layout.inputs_log(self.folder))

    @property
    def uses(self) -> Log:
        """The log of attempts at training the run, with the cached features that each attempt uses."""
        return Log(self.store, layout.uses_log(self.folder))

    def newest_report(self, split: str | None = None) -> int | None:
        """Number of the newest evaluation on `split` (None: on any split); None if there is none."""
        numbers = reversed(self.reports.numbers())
        return next(
            (each for each in numbers if split is None or self.reports.read_as(ReportEntry, each).split == split), None
        )


def run_id_for(config: Config, dataset: Dataset) -> str:
    """The id of a run, derived from everything that decides its result: a repeated command finds its run by it."""
    canonical = json.dumps(identity(config, dataset), sort_keys=True, separators=(",", ":"))
    return f"{config.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def open_run(
    store: Store,
    config: Config,
    dataset: Dataset,
    *,
    run_id: str | None = None,
    fold: Fold | None = None,
    started_by: str | None = None,
) -> Run:
    """Start the run, or find the one that was started with the same configuration and dataset version.

    The run of a fold has its own id. `started_by`: folder of the night or sweep that starts it. Raises
    RunConflictError, which lists the differing keys, if a run with this id was started with another configuration;
    ConfigError if the dataset version was made with another `dataset.depth`.
    """
    if dataset.depth != config.dataset.image_depth:
        raise ConfigError(
            f"dataset.depth is {depth_title(config.dataset.image_depth)}, and {dataset.reference} was made with "
            f"{depth_title(dataset.depth)}.",
            advice="Ingest again to make a version with this depth, or set dataset.depth back.",
        )
    run_id = run_id or run_id_for(config, dataset)
    learned = identity(config, dataset)
    if fold is not None:
        run_id, learned = f"{run_id}-{fold}", {**learned, "fold": str(fold)}
    document = {
        "identity": learned,
        "config": config.model_dump(mode="json"),
        "dataset": {"name": dataset.name, "number": dataset.number},
        "started": now_utc(),
        "started_by": started_by,
        "versions": {**{name: version(name) for name in ("keras", "ray", "tensorflow")}, "transfer": __version__},
    }
    try:
        put_document(store, layout.run_start(run_id), document)
    except AlreadyExistsError:
        differing = differing_keys(read_start(store, run_id).identity, learned)
        if differing:
            raise RunConflictError(
                f"Run `{run_id}` was started with another configuration; different: {', '.join(differing)}.",
                advice="Give another --run-id, or none, or go back to the configuration with which the run was started"
                + (", including its files." if any(key.endswith(".sha256") for key in differing) else "."),
            ) from None
    return Run(store, run_id, config, dataset.name, dataset.number, fold=fold)


def load_run(store: Store, run_id: str, config: Config) -> Run:
    """Find a run by its id. Sections that do not change what is learned, such as storage, are those of `config`.

    Raises TrainingError if there is no such run, or if it only served to cross-validate a trial.
    """
    started = usable_start(store, run_id)
    changed = config.model_dump(mode="json", include=set(NOT_LEARNED))
    own = as_model(Config, {**started.config, **changed}, uri=store.uri)
    base = own.base.model_copy(
        update={"accept_head": config.base.accept_head, **_paths_here(config, own, started.identity)}
    )
    own = own.model_copy(update={"base": base})
    return Run(store, run_id, own, started.dataset.name, started.dataset.number)


def usable_start(store: Store, run_id: str) -> RunStart:
    """The start document of a run whose model can be used.

    Raises TrainingError if there is no such run, or if it only served to cross-validate a trial.
    """
    if not store.exists(layout.run_start(run_id)):
        raise TrainingError(
            f"There is no run `{run_id}` in {store.uri}.", advice="`transfer train` prints the run id it works on."
        )
    started = read_start(store, run_id)
    if started.is_of_fold:
        raise TrainingError(
            f"Run `{run_id}` cross-validated a trial: it was trained without one fold, and its model is not for use.",
            advice="`transfer train` with the trial's values trains a model on the whole training split.",
        )
    return started


def _paths_here(config: Config, own: Config, identity: dict[str, Any]) -> dict[str, str]:
    """The present paths, by key, of those files of a run's base that have the same content in `config`.

    A cluster runs each job in another copy of the working tree, so the paths change from job to job.
    """
    if (config.base.model, config.base.weights) == (own.base.model, own.base.weights):
        return {}
    digests = base_digests(config.base, storage=config.storage)
    named = identity.get("base")
    of_start = named if isinstance(named, dict) else {}
    return {
        key: getattr(config.base, key) for key, sha256 in digests.items() if _sha256_in(of_start.get(key)) == sha256
    }


def _sha256_in(named: Any) -> str | None:
    """Digest of a file of the base in an identity; None if the identity has only the file's name."""
    return named.get("sha256") if isinstance(named, dict) else None


def identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """All that decides what a run learns: the configuration, the dataset version, and the files of the base by content.

    Raises what `base_digests` raises.
    """
    learned = deciding(config, Decides.FEATURES, Decides.LEARNING)
    learned["base"] = base_identity(config.base, storage=config.storage)
    # The dataset version decides which images are used; their source does not matter.
    learned["dataset"] = dataset.reference
    return learned


def started_identity(run: Run) -> dict[str, Any]:
    """The `identity` that a run was started with. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    return read_start(run.store, run.id).identity


def read_start(store: Store, run_id: str) -> RunStart:
    """The start document of a run. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    return as_model(RunStart, read_document(store, layout.run_start(run_id)), uri=store.uri)


def differing_keys(left: Any, right: Any, path: str = "") -> list[str]:
    """Dotted keys at which two identities differ."""
    if path.startswith(".base.") and isinstance(right, dict) and "sha256" in right:
        # Earlier releases recorded the names of files, with or without their digests.
        left, right = {"sha256": _sha256_in(left) or right["sha256"]}, {"sha256": right["sha256"]}
    if isinstance(left, dict) and isinstance(right, dict):
        keys = sorted(set(left) | set(right))
        return [found for key in keys for found in differing_keys(left.get(key), right.get(key), f"{path}.{key}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            found
            for index, (a, b) in enumerate(zip(left, right, strict=True))
            for found in differing_keys(a, b, f"{path}[{index}]")
        ]
    return [] if left == right else [path.removeprefix(".")]


_SHOWN = 12
_BEGAN_UNNORMALISED = (
    " An earlier release began it: there, BatchNorms of random weights had no statistics and were not trained, so that "
    "hardly anything was learned. Its reports and versions can be read as before."
)


class _PinnedBase(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    keras: str


def pinned_base(run: Run) -> str | None:
    """Digest (`Backbone.digest`) of the pretrained base that a run began with.

    It is None before the run's network is first built, and for a run of an earlier release. Raises CorruptObjectError,
    StorageError.
    """
    found = _read(run)
    return found.sha256 if found else None


def hold_to_base(run: Run, digest: str) -> None:
    """Check that a base that was built for a run, and is not trained yet, is the one that the run began with.

    The first process that builds the base records its digest; all others compare theirs with it. A run that an earlier
    release began has no digest and is not checked. Raises BaseChangedError, StorageError.
    """
    pinned = _read(run)
    if pinned is None and not run.checkpoints.newest_number():
        _check_files(run)
        # Several workers may come here; the digest of the first one counts.
        with suppress(AlreadyExistsError):
            run.base.append({"sha256": digest, "keras": version("keras")}, number=1)
        pinned = _read(run)
    if pinned is not None and pinned.sha256 != digest:
        here = version("keras")
        raise BaseChangedError(
            f"base.model (`{run.config.base.model}`) is not the network with which run `{run.id}` began: its digest "
            f"was {pinned.sha256[:_SHOWN]}… then and is {digest[:_SHOWN]}… now"
            + ("." if pinned.keras == here else f"; Keras was {pinned.keras} then and is {here} now."),
            advice="Bring back the file, the weights or the release of Keras with which the run began. Or start "
            "another run: `transfer train`, with --run-id and a new name if it finds this one."
            + (_BEGAN_UNNORMALISED if started_identity(run)["base"].get("weights") == "none" else ""),
        )


def _check_files(run: Run) -> None:
    """Raise BaseChangedError if a file of the base was replaced since the run was named, or differs on this machine."""
    named = started_identity(run)["base"]
    for key, sha256 in base_digests(run.config.base, storage=run.config.storage).items():
        expected = named[key]["sha256"] if isinstance(named[key], dict) else None
        if expected not in (None, sha256):
            raise BaseChangedError(
                f"base.{key} is `{getattr(run.config.base, key)}`, and this file is not the one with which run "
                f"`{run.id}` was started: SHA-256 {expected[:_SHOWN]}… then, {sha256[:_SHOWN]}… here.",
                advice="All machines must have the same file. If it was replaced, repeat the command to start a run "
                "with the new file.",
            )


def _read(run: Run) -> _PinnedBase | None:
    try:
        return as_model(_PinnedBase, run.base.read(1), uri=run.store.uri)
    except ObjectNotFoundError:
        return None
