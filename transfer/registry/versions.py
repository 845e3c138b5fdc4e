"""Model versions in storage.

A version exists once its JSON is in storage. Before that, an entry in the run's log of publications is written, after
all files of the version. The entry contains the whole version, so any process that finds an entry without the JSON
writes that JSON, with the same content. The log's next entry is a new publication of the run: after its version was
removed, or with `--again`.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from transfer import __version__
from transfer.backbone.identity import base_identity
from transfer.catalog import layout
from transfer.catalog.layout import Number
from transfer.catalog.model import ModelFile, ModelVersion, Pretrained, Provenance
from transfer.config import Config
from transfer.errors import AlreadyExistsError, ObjectNotFoundError, PublishConflictError, RegistryError
from transfer.registry.retention_log import check_not_removed, read_retention
from transfer.storage import Log, Store, as_model, now_utc, put_document, sha256_of_file


def published_version(store: Store, model: str, run: str) -> ModelVersion | None:
    """The version that a run was published as; None if there is none or it was removed. Raises StorageError."""
    latest = _publications(store, model, run).latest()
    if latest is None:
        return None
    version = as_model(ModelVersion, latest[1], uri=store.uri)
    if version.number in read_retention(store, model).removed:
        return None
    return commit_version(store, version)


def pretrained_id(config: Config, names: Sequence[str] | None) -> str:
    """The id, in place of a run's, under which a pretrained classifier is published: from all that decides its answers.

    `names`: of its classes; None for those of ImageNet. Raises what `base_identity` raises.
    """
    decides = {
        "base": base_identity(config.base, storage=config.storage),
        "names": names and list(names),
        "graph": config.publish.graph,
        "mixed_precision": config.training.mixed_precision,
        "depth": config.dataset.image_depth,
        "background": config.dataset.background,
        "versions": [__version__, installed_version("keras")],
    }
    return f"pretrained-{hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]}"


def publish_once(
    store: Store, version: ModelVersion, *, run: str, instead_of: ModelVersion | None = None
) -> ModelVersion:
    """Record an uploaded version as the run's publication, and make it exist.

    `instead_of`: the version that the run was published as before, which continues to exist. Raises
    PublishConflictError if another process published the run meanwhile, in which case that version exists;
    StorageError.
    """
    log = _publications(store, version.model, run)
    number = log.newest_number() + 1
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
    return Log(store, layout.published_log(model, run))


def _conflict(store: Store, winner: ModelVersion, run: str) -> PublishConflictError:
    return PublishConflictError(
        f"Run `{run}` was published by another process at the same time, as version {winner.number} of model "
        f"`{winner.model}` in {store.uri}.",
        advice="Nothing is missing: the same command finds that version when it is repeated.",
    )


class Promotion(BaseModel):
    """An entry of the promotion log."""

    model_config = ConfigDict(frozen=True)

    version: Number
    since: str
    reason: str
    replaces: Number | None
    evidence: dict[str, Any] | None = None
    """What the decision was based on, for programs: the night or run, and the gate's rules with their figures."""


def versions_log(store: Store, model: str) -> Log:
    """The log of a model's versions."""
    return Log(store, layout.versions_log(model))


def promotions_log(store: Store, model: str) -> Log:
    """The log of a model's promotions; its highest entry is the version that serves."""
    return Log(store, layout.promotions_log(model))


def upload_version(
    store: Store,
    model: str,
    exported: Path,
    *,
    classes: Sequence[str],
    untrained_classes: Sequence[str] = (),
    provenance: Provenance | Pretrained,
) -> ModelVersion:
    """Upload a SavedModel from a local folder under the model's next number, as a version that does not exist yet.

    The number is claimed first. If the process dies, a folder without a JSON remains, and its number is not used again.
    """
    number = _claim(store, model)
    folder = layout.version_folder(model, number)
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
        untrained_classes=tuple(untrained_classes),
        provenance=provenance,
        published_after=promotions_log(store, model).newest_number(),
    )


def commit_version(store: Store, version: ModelVersion) -> ModelVersion:
    """Make an uploaded version exist; no effect if it exists. Raises AlreadyExistsError, StorageError."""
    versions_log(store, version.model).append(version.model_dump(mode="json"), number=version.number)
    return version


def list_versions(store: Store, model: str) -> Iterator[ModelVersion]:
    """All published versions, oldest first."""
    removed = read_retention(store, model).removed
    for number in versions_log(store, model).numbers():
        # A removed version may still have its JSON, and a listed one may lose it before it is read.
        version = None if number in removed else _read_version(store, model, number)
        if version is not None:
            yield version


def models_with_versions(store: Store) -> list[str]:
    """Names of the models that have published versions, sorted."""
    return [model for model in model_names(store) if next(list_versions(store, model), None) is not None]


def model_names(store: Store) -> list[str]:
    """Names of the models that have any object in storage, sorted; from one listing."""
    return sorted({layout.below(layout.MODELS, item.name)[0] for item in store.list(f"{layout.MODELS}/")})


def load_version(store: Store, model: str, number: int | None = None) -> ModelVersion:
    """A version by number, or the promoted one. Raises RegistryError if it does not exist."""
    if number is None:
        promotion = current_promotion(store, model)
        if promotion is None:
            raise _nothing_promoted(store, model)
        number = promotion.version
    else:
        # Only for a given number, because the version that serves is never removed.
        check_not_removed(read_retention(store, model), model, number)
    version = _read_version(store, model, number) if number > 0 else None
    if version is None:
        raise RegistryError(
            f"Model `{model}` has no version {number} in {store.uri}.",
            advice=f"Its versions: {', '.join(str(each.number) for each in list_versions(store, model)) or 'none'}.",
        )
    return version


def _nothing_promoted(store: Store, model: str) -> RegistryError:
    """The error for a model without a promoted version, which may not exist at all."""
    found = f"No version of model `{model}` is promoted in {store.uri}"
    waiting = [str(number) for number in versions_log(store, model).numbers()]
    if waiting:
        return RegistryError(
            f"{found}.",
            advice=f"It has version{'s' if len(waiting) > 1 else ''} {', '.join(waiting[-5:])}. `transfer registry "
            "show` says why none serves, `transfer registry promote` makes one serve, and `predict` takes `--version "
            f"{waiting[-1]}`.",
        )
    others = models_with_versions(store)
    if not others:
        return RegistryError(
            f"{found}, and no model has a version there.",
            advice="Check the address of the storage. `transfer train` publishes a model in it.",
        )
    close = get_close_matches(model, others, n=3)
    shown = ", ".join(f"`{name}`" for name in close or others[:5])
    return RegistryError(
        f"{found}: there is no such model.",
        advice=f"{'Near that name are' if close else 'Among the models there are'} {shown}. `transfer train` publishes "
        "others.",
    )


def download_version(store: Store, version: ModelVersion, folder: Path) -> Path:
    """Copy a version's files into `folder`, each verified. Returns `folder`.

    Raises CorruptObjectError for a wrong byte, RegistryError if the version is removed meanwhile.
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


def current_promotion(store: Store, model: str) -> Promotion | None:
    """The promotion in force, or None if no version serves."""
    latest = promotions_log(store, model).latest()
    return as_model(Promotion, latest[1], uri=store.uri) if latest else None


def list_promotions(store: Store, model: str) -> Iterator[tuple[int, Promotion]]:
    """Yield the promotion log's numbers and entries, newest first; each entry is read when the iterator reaches it."""
    for number, document in promotions_log(store, model).newest_first():
        yield number, as_model(Promotion, document, uri=store.uri)


def _read_version(store: Store, model: str, number: int) -> ModelVersion | None:
    try:
        return as_model(ModelVersion, versions_log(store, model).read(number), uri=store.uri)
    except ObjectNotFoundError:
        return None


def _claim(store: Store, model: str) -> int:
    """Reserve a version number: put-if-absent of a claim makes one publisher its owner."""
    folder = layout.versions_log(model)
    taken = {part for obj in store.list(f"{folder}/") if (part := layout.below(folder, obj.name)[0][:8]).isdigit()}
    number = max((int(part) for part in taken), default=0) + 1
    while True:
        try:
            claim = {"claimed_at": now_utc(), "by": uuid.uuid4().hex}
            put_document(store, layout.version_claim(model, number), claim)
        except AlreadyExistsError:
            number += 1
            continue
        # If this process paused since the listing, the number's version may have been published and removed meanwhile.
        if number not in read_retention(store, model).removed:
            return number
        number += 1


def _saved_model_files(exported: Path) -> list[Path]:
    """All files of a SavedModel, `saved_model.pb` last: without it no folder loads as a model."""
    files = [path for path in exported.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: (path.name == "saved_model.pb", path))
