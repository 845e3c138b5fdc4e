"""Model versions in storage.

models/<name>/versions/<00000001>/…        the SavedModel's files; a folder that TensorFlow Serving can watch
models/<name>/versions/<00000001>.json     written last, put-if-absent; a version without it does not exist
models/<name>/promotions/<00000001>.json   which version serves; the highest number is current
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from transfer.errors import AlreadyExistsError, RegistryError
from transfer.storage import Log, Store, put_document, sha256_of_file


class ModelFile(BaseModel):
    """One file of a SavedModel."""

    model_config = ConfigDict(frozen=True)

    name: str
    size_bytes: int
    sha256: str


class ModelVersion(BaseModel):
    """A published version: whole, verified, never changed."""

    model_config = ConfigDict(frozen=True)

    model: str
    number: int
    published_at: str
    files: tuple[ModelFile, ...]
    classes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def folder(self) -> str:
        """Folder of the SavedModel in storage."""
        return f"models/{self.model}/versions/{self.number:08d}"


class Promotion(BaseModel):
    """An entry of the promotion log."""

    model_config = ConfigDict(frozen=True)

    version: int
    since: str
    reason: str
    replaces: int | None


def versions_log(store: Store, model: str) -> Log:
    """The log of a model's versions."""
    return Log(store, f"models/{model}/versions")


def add_version(
    store: Store, model: str, exported: Path, *, classes: list[str], provenance: dict[str, Any]
) -> ModelVersion:
    """Upload a SavedModel from a local folder as the model's next version.

    A number is claimed first; a publisher that dies leaves a folder without its JSON, and its number is not used again.
    """
    number = _claim(store, model)
    folder = f"models/{model}/versions/{number:08d}"
    files = []
    for path in _saved_model_files(exported):
        name = path.relative_to(exported).as_posix()
        store.put(f"{folder}/{name}", path)
        files.append(ModelFile(name=name, size_bytes=path.stat().st_size, sha256=sha256_of_file(path)))
    version = ModelVersion(
        model=model,
        number=number,
        published_at=_now(),
        files=tuple(files),
        classes=tuple(classes),
        provenance=provenance,
    )
    versions_log(store, model).append(version.model_dump(mode="json"), number=number)
    return version


def list_versions(store: Store, model: str) -> Iterator[ModelVersion]:
    """All published versions, oldest first."""
    log = versions_log(store, model)
    for number in log.numbers():
        yield ModelVersion.model_validate(log.read(number))


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
    log = versions_log(store, model)
    if number not in log.numbers():
        raise RegistryError(
            f"Model `{model}` has no version {number} in {store.uri}.",
            advice=f"Its versions are {log.numbers() or 'none'}.",
        )
    return ModelVersion.model_validate(log.read(number))


def download_version(store: Store, version: ModelVersion, folder: Path) -> Path:
    """Copy a version's files into `folder`, each verified. Raises CorruptObjectError for a wrong byte."""
    for file in version.files:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read_verified(f"{version.folder}/{file.name}", file.sha256))
    return folder


def promote(store: Store, version: ModelVersion, *, reason: str) -> Promotion:
    """Make a version the one that serving reads. Does nothing when it already is.

    Raises AlreadyExistsError when somebody else promoted at the same time.
    """
    log = Log(store, f"models/{version.model}/promotions")
    latest = log.latest()
    number, current = (0, None) if latest is None else (latest[0], Promotion.model_validate(latest[1]))
    if current is not None and current.version == version.number:
        return current
    promotion = Promotion(
        version=version.number, since=_now(), reason=reason, replaces=current.version if current else None
    )
    log.append(promotion.model_dump(mode="json"), number=number + 1)
    return promotion


def current_promotion(store: Store, model: str) -> Promotion | None:
    """The promotion in force, or None."""
    latest = Log(store, f"models/{model}/promotions").latest()
    return Promotion.model_validate(latest[1]) if latest else None


def _claim(store: Store, model: str) -> int:
    """Reserve a number: put-if-absent of a claim makes one publisher its owner."""
    prefix = f"models/{model}/versions/"
    taken = {part for obj in store.list(prefix) if (part := obj.name.removeprefix(prefix)[:8]).isdigit()}
    number = max((int(part) for part in taken), default=0) + 1
    while True:
        try:
            claim = {"claimed_at": _now(), "by": uuid.uuid4().hex}
            put_document(store, f"{prefix}{number:08d}/assets.extra/claim.json", claim)
        except AlreadyExistsError:
            number += 1
        else:
            return number


def _saved_model_files(exported: Path) -> list[Path]:
    """All files, the graph last: TensorFlow Serving takes a folder without `saved_model.pb` for unfinished."""
    files = [path for path in exported.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "saved_model.pb", path))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
