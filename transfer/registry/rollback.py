"""Going back to a version that served before: one more entry of the promotion log."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.errors import CorruptObjectError, ObjectNotFoundError, RegistryError
from transfer.registry.versions import ModelVersion, Promotion, list_promotions, load_version, promote
from transfer.storage import Store


@dataclass(frozen=True)
class Serving:
    """What serves, and what served before it."""

    number: int
    """Of the promotion in force; 0 when there is none."""
    promotion: Promotion | None
    before: int | None
    """The last version in the promotion log that is not the present one."""


@dataclass(frozen=True)
class Rollback:
    """What serves after a rollback, and whether it is something else than before."""

    promotion: Promotion
    changed: bool


def read_serving(store: Store, model: str) -> Serving:
    """What serves now. Raises CorruptObjectError, StorageError."""
    promotions = list_promotions(store, model)
    number, current = next(promotions, (0, None))
    before = (other.version for _, other in promotions if current and other.version != current.version)
    return Serving(number, current, next(before, None))


def roll_back(store: Store, model: str, *, reason: str, to: int | None = None) -> Rollback:
    """Promote the version that served before the present one, or version `to`, once all its bytes were verified.

    Changes nothing when `to` serves already. Raises RegistryError when nothing served before or the version does not
    exist or is damaged, PromotionConflictError when somebody else promoted since this began.
    """
    serving = read_serving(store, model)
    if serving.promotion is None:
        raise RegistryError(
            f"No version of model `{model}` is promoted in {store.uri}, so there is nothing to go back from.",
            advice="Publish one with `transfer train` or `transfer publish`.",
        )
    current = serving.promotion.version
    target = serving.before if to is None else to
    if target is None:
        raise RegistryError(
            f"Version {current} is the only one of model `{model}` that ever served in {store.uri}.",
            advice="Name the version to serve with --to; `transfer registry list` shows those that there are.",
        )
    if target == current:
        return Rollback(serving.promotion, changed=False)
    version = load_version(store, model, target)
    verify_version(store, version)
    return Rollback(promote(store, version, reason=reason, after=serving.number), changed=True)


def verify_version(store: Store, version: ModelVersion) -> None:
    """Read all files of a version from storage. Raises RegistryError for one that is missing or damaged."""
    for file in version.files:
        try:
            store.read_verified(f"{version.folder}/{file.name}", file.sha256)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            raise RegistryError(
                f"Version {version.number} of model `{version.model}` is not intact: {error.message}",
                advice="It was not promoted. Name an intact version with --to, or restore the file from a backup.",
            ) from error
