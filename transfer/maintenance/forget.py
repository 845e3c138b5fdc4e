"""Forgetting images: which versions, runs and models used them, and a latest version without their bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.dataset.decisions import forget_images
from transfer.dataset.forgetting import check_left, take_out
from transfer.dataset.index import read_images
from transfer.dataset.manifest import Dataset, dataset_names
from transfer.errors import DatasetError, ObjectNotFoundError
from transfer.features.copy import copy_features
from transfer.maintenance.runs import objects_of_runs, versions_of_dataset
from transfer.registry.versions import list_versions, model_names
from transfer.storage import PARALLEL, Store
from transfer.training.run import read_start


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

    `images`: keys, or SHA-256 of stored bytes. With `remove`, the decision is recorded, and the latest version that has
    their bytes is followed by one without. Earlier versions keep the bytes. Raises DatasetError if no version of
    `dataset` has one of the images, or if a split would have none left, CorruptObjectError, ObjectNotFoundError,
    StorageError.
    """
    versions = [version for name in dataset_names(store) for version in versions_of_dataset(store, name)]
    tables = _tables(store, versions)
    own = [tables[shard.sha256] for version in versions if version.name == dataset for shard in version.shards]
    found = _find(own, images)
    missing = [name for name in images if not any(name == each.sha256 or name in each.keys for each in found)]
    if missing:
        raise DatasetError(
            f"No version of dataset `{dataset}` in {store.uri} has the image {missing[0]}.",
            advice="Name it by its key, which is its path in the source, or by the SHA-256 of its stored bytes.",
        )
    holders = _holders(versions, tables, [each.sha256 for each in found])
    users = {holder.version for holder in holders if any(holder.splits.values())}
    runs, models = _runs(store, users), _models(store, users)
    version = None
    if remove:
        check_left(store, dataset, [each.sha256 for each in found])
        forget_images(store, dataset, {each.sha256: each.keys for each in found}, reason=reason)
        digests = {each.sha256 for each in found}
        version = take_out(store, dataset, digests, on_copied=partial(copy_features, store)).reference
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


def _find(tables: Sequence[pa.Table], images: Sequence[str]) -> tuple[FoundImage, ...]:
    """The images that are named by their key or their digest."""
    named = pa.array(images, pa.string())
    asked = {name for name in images if re.fullmatch("[0-9a-f]{64}", name)}
    for table in tables:
        asked |= {sha256.hex() for sha256 in table.filter(pc.is_in(table["key"], named))["sha256"].to_pylist()}
    keys: dict[str, set[str]] = {}
    for table in tables:
        for row in table.filter(pc.is_in(table["sha256"], _digests(asked))).to_pylist():
            keys.setdefault(row["sha256"].hex(), set()).add(row["key"])
    return tuple(FoundImage(sha256, tuple(sorted(keys[sha256]))) for sha256 in sorted(keys))


def _digests(digests: Iterable[str]) -> pa.Array:
    return pa.array(sorted(map(bytes.fromhex, digests)), pa.binary(32))


def _holders(versions: Sequence[Dataset], tables: Mapping[str, pa.Table], digests: Sequence[str]) -> tuple[Holder, ...]:
    wanted = _digests(digests)
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


def _runs(store: Store, versions: Collection[str]) -> tuple[str, ...]:
    """Runs on these dataset versions."""

    def on_one(run_id: str) -> bool:
        try:
            return read_start(store, run_id).dataset.reference in versions
        except ObjectNotFoundError:  # Half removed, or removed meanwhile.
            return False

    with ThreadPoolExecutor(PARALLEL) as pool:
        runs = sorted(objects_of_runs(store))
        return tuple(run_id for run_id, is_on_one in zip(runs, pool.map(on_one, runs), strict=True) if is_on_one)


def _models(store: Store, versions: Collection[str]) -> tuple[str, ...]:
    """Model versions that were trained on these dataset versions."""
    return tuple(
        f"{model}/{version.number}"
        for model in model_names(store)
        for version in list_versions(store, model)
        if version.provenance.dataset in versions
    )
