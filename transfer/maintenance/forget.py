"""Forgetting images: which versions, runs and models used them, and a latest version without their bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.dataset.decisions import forget_images
from transfer.dataset.forgetting import check_left, column_of, take_out
from transfer.dataset.index import read_images
from transfer.dataset.manifest import Dataset, dataset_names
from transfer.errors import DatasetError
from transfer.features.copy import copy_features
from transfer.maintenance.runs import datasets_of_models, datasets_of_runs, versions_of_dataset
from transfer.storage import Store


@dataclass(frozen=True)
class FoundImage:
    """An image, and the keys under which shards have it."""

    sha256: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Holder:
    """A dataset version whose shards have the bytes of such images."""

    version: str
    """Its reference, `flowers/00000003`."""
    splits: dict[str, int]
    """How many of the images it has in each split. Where it has none, they are removed rows of its shards."""


@dataclass(frozen=True)
class Forgotten:
    """Where some images were used; and, if they were forgotten, the version that does not have them any more."""

    images: tuple[FoundImage, ...]
    holders: tuple[Holder, ...]
    """Of all datasets in the storage, oldest versions first."""
    runs: tuple[str, ...]
    """Runs on versions that have the images."""
    models: tuple[str, ...]
    """Model versions of such runs, `flowers/3`."""
    version: str | None
    """The latest version of the dataset, without the images and their bytes; None if nothing was changed."""


def forget(store: Store, dataset: str, images: Sequence[str], *, reason: str, remove: bool = False) -> Forgotten:
    """Find where images were used and, with `remove`, forget them: no later version of `dataset` has them.

    `images`: SHA-256 of stored bytes, or keys. A key means the image that the newest version with that key has under
    it, and no later file under that key is taken. With `remove`, the decision is recorded, and the latest version that
    has their bytes is followed by one without. Earlier versions keep the bytes. Raises DatasetError if no version of
    `dataset` has one of the images, if one key means several, or if a split would have none left, CorruptObjectError,
    ObjectNotFoundError, StorageError.
    """
    versions = [version for name in dataset_names(store) for version in versions_of_dataset(store, name)]
    tables = _tables(store, versions)
    own = [version for version in versions if version.name == dataset]
    named = {name for name in images if re.fullmatch("[0-9a-f]{64}", name)}
    by_key = _by_key(own, tables, {*images} - named)
    for key, digests in by_key.items():
        if len(digests) > 1:
            raise DatasetError(
                f"Dataset `{dataset}` has {len(digests)} images under the key {key}, because a file was renamed: their "
                f"SHA-256 are {', '.join(sorted(digests))}.",
                advice="Name the one to forget by its SHA-256.",
            )
    found = _find(own, tables, named.union(*by_key.values()))
    known = {*by_key, *(each.sha256 for each in found)}
    missing = [name for name in images if name not in known]
    if missing:
        raise DatasetError(
            f"No version of dataset `{dataset}` in {store.uri} has the image {missing[0]}.",
            advice="Name it by its key, which is its path in the source, or by the SHA-256 of its stored bytes.",
        )
    holders = _holders(versions, tables, [each.sha256 for each in found])
    users = {holder.version for holder in holders if any(holder.splits.values())}
    runs = tuple(run_id for run_id, trained_on in datasets_of_runs(store) if trained_on in users)
    models = tuple(model for model, trained_on in datasets_of_models(store) if trained_on in users)
    version = None
    if remove:
        check_left(store, dataset, [each.sha256 for each in found])
        # Only keys that were named. Another file may have the name now that an image had when it was stored.
        keys = {each.sha256: [key for key, of_key in by_key.items() if each.sha256 in of_key] for each in found}
        forget_images(store, dataset, keys, reason=reason)
        version = take_out(store, dataset, keys, on_copied=partial(copy_features, store)).reference
    return Forgotten(found, holders, runs, models, version)


def _tables(store: Store, versions: Sequence[Dataset]) -> dict[str, pa.Table]:
    """Digests and keys of all stored rows, by the SHA-256 of the shard; each shard is read once."""
    tables: dict[str, pa.Table] = {}
    # The newest versions first: their indexes list most of the shards.
    for version in reversed(versions):
        shards = [shard.whole for shard in version.shards if shard.sha256 not in tables]
        read = read_images(store, version, ["sha256", "key"], shards) if shards else []
        tables |= zip((shard.sha256 for shard in shards), read, strict=True)
    return tables


def _by_key(versions: Sequence[Dataset], tables: Mapping[str, pa.Table], keys: AbstractSet[str]) -> dict[str, set[str]]:
    """Digests of the images under each key in the newest version that has it; unknown keys are left out."""
    of_versions = [version.shards for version in reversed(versions)]
    # A key that only removed rows have is that of an image whose versions are gone.
    removed_too = [[shard.whole for shard in shards] for shards in of_versions]
    found: dict[str, set[str]] = {}
    for shards in [*of_versions, *removed_too]:
        here: dict[str, set[str]] = {}
        wanted = pa.array(sorted(keys - found.keys()), pa.string())
        for shard in shards if len(wanted) else []:
            table = tables[shard.sha256].take(shard.live_rows())
            for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist():
                here.setdefault(row["key"], set()).add(row["sha256"].hex())
        found |= here
    return found


def _find(
    versions: Sequence[Dataset], tables: Mapping[str, pa.Table], digests: AbstractSet[str]
) -> tuple[FoundImage, ...]:
    """The images with these digests that the versions store."""
    wanted = column_of(digests)
    keys: dict[str, set[str]] = {}
    for sha256 in {shard.sha256 for version in versions for shard in version.shards}:
        table = tables[sha256]
        for row in table.filter(pc.is_in(table["sha256"], wanted)).to_pylist():
            keys.setdefault(row["sha256"].hex(), set()).add(row["key"])
    return tuple(FoundImage(sha256, tuple(sorted(keys[sha256]))) for sha256 in sorted(keys))


def _holders(versions: Sequence[Dataset], tables: Mapping[str, pa.Table], digests: Sequence[str]) -> tuple[Holder, ...]:
    wanted = column_of(digests)
    rows = {sha256: np.flatnonzero(pc.is_in(table["sha256"], wanted).to_numpy()) for sha256, table in tables.items()}
    holders = []
    for version in versions:
        having = [shard for shard in version.shards if len(rows[shard.sha256])]
        splits = Counter[str]()
        for shard in having:
            splits[shard.split] += int(np.isin(rows[shard.sha256], shard.removed, invert=True).sum())
        if having:
            holders.append(Holder(version.reference, {split: count for split, count in splits.items() if count}))
    return tuple(holders)
