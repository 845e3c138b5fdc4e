"""Model versions in storage.

models/<name>/versions/<00000001>/…        the SavedModel's files; a folder that TensorFlow Serving can watch
models/<name>/versions/<00000001>.json     written last, put-if-absent; a version without it does not exist
models/<name>/published/…                  which version a run was published as (`publication.py`)
models/<name>/promotions/<00000001>.json   which version serves; the highest number is current
models/<name>/retention/<00000001>.json    what is pinned and what was removed (`retention_log.py`)
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from transfer.errors import AlreadyExistsError, ObjectNotFoundError, PromotionConflictError, RegistryError
from transfer.registry.retention_log import announce_promotion, check_not_removed, now_utc, read_retention
from transfer.storage import Log, Store, as_model, put_document, sha256_of_file
from transfer.storage.log import Number
from transfer.storage.store import check_name


class ModelFile(BaseModel):
    """One file of a SavedModel."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        return check_name(name)


class ModelVersion(BaseModel):
    """A published version: whole, verified, never changed."""

    model_config = ConfigDict(frozen=True)

    model: str
    number: Number
    published_at: str
    files: tuple[ModelFile, ...]
    classes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def folder(self) -> str:
        """Folder of the SavedModel in storage."""
        return f"{versions_folder(self.model)}/{self.number:08d}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


class Promotion(BaseModel):
    """An entry of the promotion log."""

    model_config = ConfigDict(frozen=True)

    version: Number
    since: str
    reason: str
    replaces: Number | None
    evidence: dict[str, Any] | None = None
    """What it was decided on, for programs: a night's number and its gate's rules with their figures."""


def versions_folder(model: str) -> str:
    """Where a model's versions lie in storage; TensorFlow Serving can watch it."""
    return f"models/{model}/versions"


def versions_log(store: Store, model: str) -> Log:
    """The log of a model's versions."""
    return Log(store, versions_folder(model))


def promotions_log(store: Store, model: str) -> Log:
    """The log of which version serves."""
    return Log(store, f"models/{model}/promotions")


def add_version(
    store: Store, model: str, exported: Path, *, classes: list[str], provenance: dict[str, Any]
) -> ModelVersion:
    """Upload a SavedModel from a local folder as the model's next version, and have it exist."""
    return commit_version(store, upload_version(store, model, exported, classes=classes, provenance=provenance))


def upload_version(
    store: Store, model: str, exported: Path, *, classes: list[str], provenance: dict[str, Any]
) -> ModelVersion:
    """Upload a SavedModel from a local folder under the model's next number, as a version that does not exist yet.

    A number is claimed first; a publisher that dies leaves a folder without its JSON, and its number is not used again.
    """
    number = _claim(store, model)
    folder = f"{versions_folder(model)}/{number:08d}"
    files = []
    for path in _saved_model_files(exported):
        name = path.relative_to(exported).as_posix()
        store.put(f"{folder}/{name}", path)
        files.append(ModelFile(name=name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path)))
    return ModelVersion(
        model=model,
        number=number,
        published_at=now_utc(),
        files=tuple(files),
        classes=tuple(classes),
        provenance=provenance,
    )


def commit_version(store: Store, version: ModelVersion) -> ModelVersion:
    """Make an uploaded version exist; nothing happens where it does. Raises AlreadyExistsError, StorageError."""
    versions_log(store, version.model).append(version.model_dump(mode="json"), number=version.number)
    return version


def list_versions(store: Store, model: str) -> Iterator[ModelVersion]:
    """All published versions, oldest first."""
    removed = read_retention(store, model).removed
    for number in versions_log(store, model).numbers():
        # A reader may come between the decision to remove a version and its end, from either side.
        version = None if number in removed else _read_version(store, model, number)
        if version is not None:
            yield version


def load_version(store: Store, model: str, number: int | None = None) -> ModelVersion:
    """A version by number, or the promoted one. Raises RegistryError when there is none."""
    if number is None:
        promotion = current_promotion(store, model)
        if promotion is None:
            raise RegistryError(
                f"No version of model `{model}` is promoted in {store.uri}.",
                advice="Publish one with `transfer train` or `transfer publish`.",
            )
        number = promotion.version
    else:
        # What serves is never removed, so whoever wants that need not ask.
        check_not_removed(read_retention(store, model), model, number)
    version = _read_version(store, model, number) if number > 0 else None
    if version is None:
        raise RegistryError(
            f"Model `{model}` has no version {number} in {store.uri}.",
            advice=f"Its versions are {[version.number for version in list_versions(store, model)] or 'none'}.",
        )
    return version


def download_version(store: Store, version: ModelVersion, folder: Path) -> Path:
    """Copy a version's files into `folder`, each verified.

    Raises CorruptObjectError for a wrong byte, RegistryError when the version is removed meanwhile.
    """
    for file in version.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(store.read_verified(f"{version.folder}/{file.name}", file.sha256))
        except ObjectNotFoundError:
            check_not_removed(read_retention(store, version.model), version.model, version.number)
            raise
    return folder


def promote(
    store: Store,
    version: ModelVersion,
    *,
    reason: str,
    after: int | None = None,
    evidence: dict[str, Any] | None = None,
) -> Promotion:
    """Make a version the one that serving reads. Does nothing when it already is.

    `after`: number of the promotion in force when this one was decided on (0: none was); default: the one in force now.
    Raises PromotionConflictError when somebody else promoted since, RegistryError when the version was removed.
    """
    log = promotions_log(store, version.model)
    latest = log.latest()
    number, current = (0, None) if latest is None else (latest[0], as_model(Promotion, latest[1], uri=store.uri))
    if after is not None and number != after:
        raise _conflict(store, version, number)
    if current is not None and current.version == version.number:
        return current
    announce_promotion(store, version.model, version.number, promotion=number + 1)
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
        # By somebody else, or by a request of our own that was given up and came late.
        if won.version == version.number:
            return won
        raise _conflict(store, version, number + 1) from error
    return promotion


def current_promotion(store: Store, model: str) -> Promotion | None:
    """The promotion in force, or None."""
    latest = promotions_log(store, model).latest()
    return as_model(Promotion, latest[1], uri=store.uri) if latest else None


def list_promotions(store: Store, model: str) -> Iterator[tuple[int, Promotion]]:
    """The promotion log with its numbers, newest first; each entry is read when it is asked for."""
    log = promotions_log(store, model)
    for number in reversed(log.numbers()):
        yield number, as_model(Promotion, log.read(number), uri=store.uri)


def _read_version(store: Store, model: str, number: int) -> ModelVersion | None:
    try:
        return as_model(ModelVersion, versions_log(store, model).read(number), uri=store.uri)
    except ObjectNotFoundError:
        return None


def _conflict(store: Store, version: ModelVersion, winner: int) -> PromotionConflictError:
    won = as_model(Promotion, promotions_log(store, version.model).read(winner), uri=store.uri)
    return PromotionConflictError(
        f"Version {version.number} of model `{version.model}` was not promoted: version {won.version} was, at the same "
        f"time, by promotion {winner} of {won.since} ({won.reason}).",
        advice="Look at `transfer registry list`, and repeat it if it is still what you want.",
    )


def _claim(store: Store, model: str) -> int:
    """Reserve a number: put-if-absent of a claim makes one publisher its owner."""
    prefix = f"{versions_folder(model)}/"
    taken = {part for obj in store.list(prefix) if (part := obj.name.removeprefix(prefix)[:8]).isdigit()}
    number = max((int(part) for part in taken), default=0) + 1
    while True:
        try:
            claim = {"claimed_at": now_utc(), "by": uuid.uuid4().hex}
            put_document(store, f"{prefix}{number:08d}/assets.extra/claim.json", claim)
        except AlreadyExistsError:
            number += 1
            continue
        # Who stood still since the listing may have got a number whose version was published and removed meanwhile.
        if number not in read_retention(store, model).removed:
            return number
        number += 1


def _saved_model_files(exported: Path) -> list[Path]:
    """All files, the graph last: TensorFlow Serving takes a folder without `saved_model.pb` for unfinished."""
    files = [path for path in exported.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "saved_model.pb", path))
