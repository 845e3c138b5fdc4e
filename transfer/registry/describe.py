"""What the registry knows of a model's versions, from its documents alone."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.registry.retention_log import Pin, read_retention
from transfer.registry.versions import (
    ModelVersion,
    Promotion,
    current_promotion,
    list_promotions,
    list_versions,
    load_version,
)
from transfer.storage import Store


@dataclass(frozen=True)
class DescribedVersion:
    """A version and what was decided about it."""

    version: ModelVersion
    is_promoted: bool
    pin: Pin | None


def describe_versions(store: Store, model: str) -> list[DescribedVersion]:
    """All versions, oldest first. Raises CorruptObjectError, StorageError."""
    return _describe(store, model, list(list_versions(store, model)))


def describe_version(store: Store, model: str, number: int | None = None) -> DescribedVersion:
    """A version by number, or the promoted one. Raises RegistryError when there is none."""
    (described,) = _describe(store, model, [load_version(store, model, number)])
    return described


def promotions_about(store: Store, version: ModelVersion) -> list[tuple[int, Promotion]]:
    """The promotion log's entries that promoted or replaced a version, oldest first, with their numbers."""
    entries = list_promotions(store, version.model)
    return [each for each in entries if version.number in (each[1].version, each[1].replaces)][::-1]


def _describe(store: Store, model: str, versions: list[ModelVersion]) -> list[DescribedVersion]:
    promoted, now = current_promotion(store, model), read_retention(store, model)
    return [
        DescribedVersion(
            version=version,
            is_promoted=promoted is not None and promoted.version == version.number,
            pin=now.pin_of(version.number),
        )
        for version in versions
    ]
