"""Which version a run was published as: decided once, whoever publishes it, and whoever dies meanwhile.

models/<name>/published/<run id>/<00000001>.json   the whole version, when all its files are in storage

The entry is made before the version's own JSON, which alone makes a version exist. Whoever finds an entry without it
writes that JSON: it is the same, whoever does. A run whose version was removed, or that is to be published once more,
is published anew, by the next entry.
"""

from __future__ import annotations

from transfer.errors import AlreadyExistsError, PublishConflictError
from transfer.registry.retention_log import read_retention
from transfer.registry.versions import ModelVersion, commit_version
from transfer.storage import Log, Store, as_model


def published_version(store: Store, model: str, run: str) -> ModelVersion | None:
    """The version that a run was published as, unless it was removed. Raises StorageError."""
    latest = _publications(store, model, run).latest()
    if latest is None:
        return None
    version = as_model(ModelVersion, latest[1], uri=store.uri)
    if version.number in read_retention(store, model).removed:
        return None
    return commit_version(store, version)


def publish_once(
    store: Store, version: ModelVersion, *, run: str, instead_of: ModelVersion | None = None
) -> ModelVersion:
    """Make an uploaded version the one that a run is published as, and have it exist.

    `instead_of`: the version that the run is known to be published as, which stays a version. Raises
    PublishConflictError when another process published the run meanwhile; then its version exists. StorageError.
    """
    log = _publications(store, version.model, run)
    number = max(log.numbers(), default=0) + 1
    winner = published_version(store, version.model, run)
    if winner is not None and winner != instead_of:
        raise _conflict(store, winner, run)
    try:
        log.append(version.model_dump(mode="json"), number=number)
    except AlreadyExistsError:
        winner = as_model(ModelVersion, log.read(number), uri=store.uri)
        raise _conflict(store, commit_version(store, winner), run) from None
    return commit_version(store, version)


def _publications(store: Store, model: str, run: str) -> Log:
    return Log(store, f"models/{model}/published/{run}")


def _conflict(store: Store, winner: ModelVersion, run: str) -> PublishConflictError:
    return PublishConflictError(
        f"Run `{run}` was published by another process at the same time, as version {winner.number} of model "
        f"`{winner.model}` in {store.uri}.",
        advice="Nothing is missing: the same command finds that version when it is repeated.",
    )
