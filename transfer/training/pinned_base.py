"""Which base a run began with: its digest as it was pretrained.

runs/<run id>/base/00000001.json   that digest, and the release of Keras that built it; written once

A run's id covers the files of its base (`backbone/identity.py`). This covers what only loading it shows: what a handle
leads to, the weights behind `imagenet`, a release of Keras that builds something else. Needs no TensorFlow.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from transfer.backbone.identity import base_digests
from transfer.errors import AlreadyExistsError, BaseChangedError, ObjectNotFoundError
from transfer.storage import as_model
from transfer.training.run import Run, started_identity

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
    if pinned is None and not run.checkpoints.numbers():
        pinned = _pin(run, digest)
    if pinned is not None and pinned.sha256 != digest:
        here = version("keras")
        raise BaseChangedError(
            f"Run `{run.id}` began with another network than base.model (`{run.config.base.model}`) gives now: its "
            f"digest was {pinned.sha256[:_SHOWN]}… then and is {digest[:_SHOWN]}… now"
            + ("." if pinned.keras == here else f"; Keras was {pinned.keras} then and is {here} now."),
            advice="Bring back the file, the weights or the release of Keras that it began with, or start another run: "
            "`transfer train`, with --run-id and a new name where it finds this one.",
        )


def _pin(run: Run, digest: str) -> _PinnedBase | None:
    """What the run is held to from now on: this digest, or that of another worker who was first."""
    _check_files(run)
    with suppress(AlreadyExistsError):
        run.base.append({"sha256": digest, "keras": version("keras")}, number=1)
    return _read(run)


def _check_files(run: Run) -> None:
    """The run was named by files that may have been replaced before they were loaded, or are others on this machine."""
    named = started_identity(run)["base"]
    for key, sha256 in base_digests(run.config.base, storage=run.config.storage).items():
        expected = named[key]["sha256"] if isinstance(named[key], dict) else None
        if expected not in (None, sha256):
            raise BaseChangedError(
                f"base.{key} is `{named[key]['name']}`, another file here than run `{run.id}` was started with: "
                f"SHA-256 {expected[:_SHOWN]}… then, {sha256[:_SHOWN]}… here.",
                advice="Repeat the command for a run on the file that is there now; each machine must have the same.",
            )


def _read(run: Run) -> _PinnedBase | None:
    try:
        return as_model(_PinnedBase, run.base.read(1), uri=run.store.uri)
    except ObjectNotFoundError:
        return None
