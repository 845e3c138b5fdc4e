"""Going back to a version that served before: one more entry of the promotion log."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.errors import CorruptObjectError, ObjectNotFoundError, RegistryError
from transfer.registry.versions import ModelVersion, Promotion, load_version, promote, promotions_log
from transfer.storage import Store


@dataclass(frozen=True)
class Rollback:
    """What serves after a rollback, and whether it did before."""

    promotion: Promotion
    changed: bool


def roll_back(store: Store, model: str, *, reason: str, to: int | None = None) -> Rollback:
    """Promote the version that served before the present one, or version `to`, once all its bytes were verified.

    Changes nothing when `to` serves already. Raises RegistryError when nothing served before or the version does not
    exist or is damaged, PromotionConflictError when somebody else promoted since this began.
    """
    history = list_promotions(store, model)
    if not history:
        raise RegistryError(
            f"No version of model `{model}` is promoted in {store.uri}, so there is nothing to go back from.",
            advice="Publish one with `transfer train` or `transfer publish`.",
        )
    number, current = history[-1]
    target = to if to is not None else _served_before(store, model, history)
    if target == current.version:
        return Rollback(current, changed=False)
    version = load_version(store, model, target)
    verify_version(store, version)
    return Rollback(promote(store, version, reason=reason, after=number), changed=True)


def list_promotions(store: Store, model: str) -> list[tuple[int, Promotion]]:
    """The promotion log, oldest first, with the entries' numbers."""
    log = promotions_log(store, model)
    return [(number, Promotion.model_validate(log.read(number))) for number in log.numbers()]


def verify_version(store: Store, version: ModelVersion) -> None:
    """Read all files of a version from storage. Raises RegistryError for one that is missing or damaged."""
    for file in version.files:
        try:
            store.read_verified(f"{version.folder}/{file.name}", file.sha256)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            raise RegistryError(
                f"Version {version.number} of model `{version.model}` is not intact, so it was not promoted: "
                f"{error.message}",
                advice="Name an intact version with --to, or restore the file from a backup.",
            ) from error


def _served_before(store: Store, model: str, history: list[tuple[int, Promotion]]) -> int:
    """The last version in the log that is not the present one."""
    _, current = history[-1]
    for _, promotion in reversed(history):
        if promotion.version != current.version:
            return promotion.version
    raise RegistryError(
        f"Version {current.version} is the only one of model `{model}` that ever served in {store.uri}.",
        advice="Name the version to serve with --to; `transfer registry list` shows those that there are.",
    )
