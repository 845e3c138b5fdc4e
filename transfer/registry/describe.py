"""What the registry knows of a model's versions, from its documents alone."""

from __future__ import annotations

from dataclasses import dataclass

from transfer.registry.retention_log import Pin, Retention, read_retention
from transfer.registry.rollback import list_promotions
from transfer.registry.versions import ModelVersion, Promotion, list_versions, load_version
from transfer.storage import Store


@dataclass(frozen=True)
class DescribedVersion:
    """A version and what was decided about it."""

    version: ModelVersion
    is_promoted: bool
    pin: Pin | None
    promotions: tuple[tuple[int, Promotion], ...]
    """The promotion log's entries that promoted or replaced it, oldest first, with their numbers."""


def describe_versions(store: Store, model: str) -> list[DescribedVersion]:
    """All versions, oldest first. Raises CorruptObjectError, StorageError."""
    now, promotions = read_retention(store, model), list_promotions(store, model)
    return [_described(version, now, promotions) for version in list_versions(store, model)]


def describe_version(store: Store, model: str, number: int | None = None) -> DescribedVersion:
    """A version by number, or the promoted one. Raises RegistryError when there is none."""
    version = load_version(store, model, number)
    return _described(version, read_retention(store, model), list_promotions(store, model))


def _described(version: ModelVersion, now: Retention, promotions: list[tuple[int, Promotion]]) -> DescribedVersion:
    number = version.number
    return DescribedVersion(
        version=version,
        is_promoted=bool(promotions) and promotions[-1][1].version == number,
        pin=now.pin_of(number),
        promotions=tuple(each for each in promotions if number in (each[1].version, each[1].replaces)),
    )
