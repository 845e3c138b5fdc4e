"""Promotion, rollback, and the folders that servers read.

Each promotion copies the files of its version into a folder named by the promotion's number. A rollback is a promotion,
too. So a server that takes the highest number, as TensorFlow Serving does, serves the version that was promoted last. A
folder is written after its entry in the promotion log. On a disk, which such servers read, the folder appears whole; in
a bucket its `saved_model.pb` is written last. If a job dies between the entry and the folder, the next job that trains,
promotes or begins a night completes the folder.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.catalog import layout
from transfer.catalog.model import ModelVersion
from transfer.errors import (
    AlreadyExistsError,
    CorruptObjectError,
    ObjectNotFoundError,
    PromotionConflictError,
    RegistryError,
)
from transfer.registry.retention_log import announce_promotion
from transfer.registry.versions import Promotion, download_version, list_promotions, load_version, promotions_log
from transfer.storage import Store, as_model, now_utc


@dataclass(frozen=True)
class Serving:
    """The promotion in force, and the version that served before."""

    number: int
    """Number of the promotion in force; 0 if there is none."""
    promotion: Promotion | None
    before: int | None
    """The latest version in the promotion log that differs from the present one."""

    @property
    def version(self) -> int | None:
        """The version that serves."""
        return self.promotion.version if self.promotion else None

    @property
    def text(self) -> str:
        """The version that serves, since when, and which version it replaced, as a sentence without a full stop."""
        if self.promotion is None:
            return "Nothing serves"
        replaced = self.promotion.replaces
        instead = f", instead of version {replaced}" if replaced else ""
        return f"Version {self.promotion.version} serves since {self.promotion.since}{instead}"


@dataclass(frozen=True)
class Rollback:
    """Result of a rollback. `changed`: whether another version serves than before."""

    promotion: Promotion
    changed: bool


def read_serving(store: Store, model: str) -> Serving:
    """Read which version serves now. Raises CorruptObjectError, StorageError."""
    promotions = list_promotions(store, model)
    number, current = next(promotions, (0, None))
    before = (other.version for _, other in promotions if current and other.version != current.version)
    return Serving(number, current, next(before, None))


def promote(
    store: Store,
    version: ModelVersion,
    *,
    reason: str,
    after: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> Promotion:
    """Make a version serve, after all its bytes were verified. If it already serves, no promotion is added.

    `after`: number of the promotion in force when this one was decided on (0: none was); default: the one in force now.
    `evidence`: what the decision was based on, for the promotion log. Raises PromotionConflictError if another process
    promoted since, RegistryError if the version was removed or is damaged.
    """
    log = promotions_log(store, version.model)
    latest = log.latest()
    number, current = (0, None) if latest is None else (latest[0], as_model(Promotion, latest[1], uri=store.uri))
    if after is not None and number != after:
        raise _conflict(store, version, number)
    if current is not None and current.version == version.number:
        complete_serving_folder(store, version.model)
        return current
    announce_promotion(store, version.model, version.number, promotion=number + 1)
    with tempfile.TemporaryDirectory() as folder:
        copy = _intact_copy(store, version, Path(folder))
        promotion = Promotion(
            version=version.number,
            since=now_utc(),
            reason=reason,
            replaces=current.version if current else None,
            evidence=evidence,
        )
        try:
            log.append(promotion.model_dump(mode="json"), number=number + 1)
        except AlreadyExistsError as error:
            won = as_model(Promotion, log.read(number + 1), uri=store.uri)
            # The entry is from another process, or from an earlier request of this one whose response was lost.
            if won.version != version.number:
                raise _conflict(store, version, number + 1) from error
            promotion = won
        _put_files(store, version, copy, number + 1)
    return promotion


def roll_back(store: Store, model: str, *, reason: str, to: int | None = None) -> Rollback:
    """Promote the version that served before the present one, or version `to`.

    If `to` already serves, no promotion is added. Raises RegistryError if no version served before, or the version does
    not exist or is damaged; PromotionConflictError if another process promotes at the same time.
    """
    serving = read_serving(store, model)
    if serving.promotion is None and to is None:
        raise RegistryError(
            f"No version of model `{model}` is promoted in {store.uri}, so there is nothing to go back from.",
            advice="Promote one with `transfer registry promote`; `transfer registry list` shows those that there are.",
        )
    target = serving.before if to is None else to
    if target is None:
        raise RegistryError(
            f"Version {serving.version} is the only one of model `{model}` that ever served in {store.uri}.",
            advice="Name the version to serve; `transfer registry list` shows those that there are.",
        )
    version = load_version(store, model, target)
    changed = target != serving.version
    return Rollback(promote(store, version, reason=reason, after=serving.number), changed)


def complete_serving_folder(store: Store, model: str) -> Serving:
    """Complete the folder for servers of the promotion in force.

    It is incomplete if a job died, or if an earlier release promoted. Returns the promotion in force. Raises
    CorruptObjectError, StorageError.
    """
    serving = read_serving(store, model)
    if serving.version is None:
        return serving
    version = load_version(store, model, serving.version)
    folder = layout.served_folder(model, serving.number)
    there = {item.name for item in store.list(f"{folder}/")}
    if not all(f"{folder}/{file.name}" in there for file in version.files):
        with tempfile.TemporaryDirectory() as copy:
            _put_files(store, version, download_version(store, version, Path(copy)), serving.number)
    return serving


def _put_files(store: Store, version: ModelVersion, copy: Path, promotion: int) -> None:
    """Write the files in the order of publication, in which `saved_model.pb` is last."""
    folder = layout.served_folder(version.model, promotion)
    store.put_folder(folder, copy, [file.name for file in version.files])


def _intact_copy(store: Store, version: ModelVersion, folder: Path) -> Path:
    try:
        return download_version(store, version, folder)
    except (CorruptObjectError, ObjectNotFoundError) as error:
        raise RegistryError(
            f"Version {version.number} of model `{version.model}` is not intact: {error.message}",
            advice="It was not promoted. Name an intact version, or restore the file from a backup.",
        ) from error


def _conflict(store: Store, version: ModelVersion, winner: int) -> PromotionConflictError:
    won = as_model(Promotion, promotions_log(store, version.model).read(winner), uri=store.uri)
    return PromotionConflictError(
        f"Version {version.number} of model `{version.model}` was not promoted: version {won.version} was, at the same "
        f"time, by promotion {winner} of {won.since} ({won.reason}).",
        advice="Look at `transfer registry list`, and repeat it if it is still what you want.",
    )
