"""Runs in storage, and which base each began with. Needs no TensorFlow.

A run's id covers the files of its base (`backbone/identity.py`). The digest of the base, as it was pretrained, covers
what only loading it shows: what a handle leads to, the weights behind `imagenet`, a release of Keras that builds
something else.
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
    """What a cross-validated trial's run is validated on, instead of the validation split."""

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
        """The log whose first entry says which base the run began with."""
        return Log(self.store, layout.base_log(self.folder))

    @property
    def inputs(self) -> Log:
        """The log whose first entry says what each phase trains on."""
        return Log(self.store, layout.inputs_log(self.folder))

    @property
    def uses(self) -> Log:
        """The log of attempts at training it, and the cached features that they rely on."""
        return Log(self.store, layout.uses_log(self.folder))

    def newest_report(self, split: str | None = None) -> int | None:
        """Number of the newest evaluation, of any split or of this one, or None."""
        numbers = reversed(self.reports.numbers())
        return next(
            (each for each in numbers if split is None or self.reports.read_as(ReportEntry, each).split == split), None
        )


def run_id_for(config: Config, dataset: Dataset) -> str:
    """A name decided by what would be trained, so that repeating a command continues or finds its run."""
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

    The run of a fold has an id of its own. `started_by`: folder of the night or the sweep that it is a run of. Raises
    RunConflictError, listing the differing keys, when a run of that id was started with another configuration;
    ConfigError when the dataset version was made with another `dataset.depth`.
    """
    if dataset.depth != config.dataset.image_depth:
        raise ConfigError(
            f"dataset.depth is {depth_title(config.dataset.image_depth)}, and {dataset.reference} was made with "
            f"{depth_title(dataset.depth)}.",
            advice="Ingest again: that makes a version with this depth. Or set dataset.depth back.",
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
                advice="Give another --run-id, or none, or go back to the configuration it was started with"
                + (", its files included." if any(key.endswith(".sha256") for key in differing) else "."),
            ) from None
    return Run(store, run_id, config, dataset.name, dataset.number, fold=fold)


def load_run(store: Store, run_id: str, config: Config) -> Run:
    """Find a run by its id; `config` says where storage is, the run's own configuration says what was trained.

    Raises TrainingError when there is no such run, or when it only served to cross-validate a trial.
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
    """How a run was started whose model can be used.

    Raises TrainingError when there is no such run, or when it only served to cross-validate a trial.
    """
    if not store.exists(layout.run_start(run_id)):
        raise TrainingError(
            f"There is no run `{run_id}` in {store.uri}.", advice="`transfer train` prints the run id it works on."
        )
    started = read_start(store, run_id)
    if started.is_of_fold:
        raise TrainingError(
            f"Run `{run_id}` trained on all but one fold to cross-validate a trial; it is no model to use.",
            advice="`transfer train` with the trial's values trains one on the whole training split.",
        )
    return started


def _paths_here(config: Config, own: Config, identity: dict[str, Any]) -> dict[str, str]:
    """Where the files of a run's base are that `config` knows in another place than the run was started with.

    A job that a cluster runs in a copy of the working tree finds them in another folder each time.
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
    """What an identity says of a file of the base; None where it knows only a name."""
    return named.get("sha256") if isinstance(named, dict) else None


def identity(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What decides what a run learns: the configuration, the dataset version, and the files of the base by content.

    Raises what `base_digests` raises.
    """
    learned = deciding(config, Decides.FEATURES, Decides.LEARNING)
    learned["base"] = base_identity(config.base, storage=config.storage)
    # The dataset version says which images were used; where they once came from does not matter any more.
    learned["dataset"] = dataset.reference
    return learned


def started_identity(run: Run) -> dict[str, Any]:
    """The `identity` that a run was started with. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    return read_start(run.store, run.id).identity


def read_start(store: Store, run_id: str) -> RunStart:
    """How a run was started. Raises ObjectNotFoundError, CorruptObjectError, StorageError."""
    return as_model(RunStart, read_document(store, layout.run_start(run_id)), uri=store.uri)


def differing_keys(left: Any, right: Any, path: str = "") -> list[str]:
    """Dotted keys at which two identities differ."""
    if path.startswith(".base.") and isinstance(right, dict) and "sha256" in right:
        # An earlier release wrote the names of files down, beside their digests or alone.
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


class _PinnedBase(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    keras: str


def pinned_base(run: Run) -> str | None:
    """Digest of the base, as it was pretrained, that a run began with (`Backbone.digest`).

    None before the run's network is first built, and for a run of an earlier release. Raises CorruptObjectError,
    StorageError.
    """
    found = _read(run)
    return found.sha256 if found else None


def hold_to_base(run: Run, digest: str) -> None:
    """Compare a base that was built for a run, before anything in it is trained, with the one that the run began with.

    Whoever builds it first writes its digest down; of several workers one is first, and all compare. Nothing is
    compared for a run that an earlier release began. Raises BaseChangedError, StorageError.
    """
    pinned = _read(run)
    if pinned is None and not run.checkpoints.newest_number():
        _check_files(run)
        # Of several workers one is first, and its digest is what all are held to.
        with suppress(AlreadyExistsError):
            run.base.append({"sha256": digest, "keras": version("keras")}, number=1)
        pinned = _read(run)
    if pinned is not None and pinned.sha256 != digest:
        here = version("keras")
        raise BaseChangedError(
            f"Run `{run.id}` began with another network than base.model (`{run.config.base.model}`) gives now: its "
            f"digest was {pinned.sha256[:_SHOWN]}… then and is {digest[:_SHOWN]}… now"
            + ("." if pinned.keras == here else f"; Keras was {pinned.keras} then and is {here} now."),
            advice="Bring back the file, the weights or the release of Keras that it began with, or start another run: "
            "`transfer train`, with --run-id and a new name where it finds this one.",
        )


def _check_files(run: Run) -> None:
    """The run was named by files that may have been replaced before they were loaded, or are others on this machine."""
    named = started_identity(run)["base"]
    for key, sha256 in base_digests(run.config.base, storage=run.config.storage).items():
        expected = named[key]["sha256"] if isinstance(named[key], dict) else None
        if expected not in (None, sha256):
            raise BaseChangedError(
                f"base.{key} is `{getattr(run.config.base, key)}`, another file here than run `{run.id}` was started "
                f"with: SHA-256 {expected[:_SHOWN]}… then, {sha256[:_SHOWN]}… here.",
                advice="Repeat the command for a run on the file that is there now; each machine must have the same.",
            )


def _read(run: Run) -> _PinnedBase | None:
    try:
        return as_model(_PinnedBase, run.base.read(1), uri=run.store.uri)
    except ObjectNotFoundError:
        return None
