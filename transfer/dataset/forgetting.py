"""Taking images out of the latest version of a dataset at once, and their bytes with them, without the source.

Each shard that has such an image, also as a removed row, is written anew without it. Earlier versions keep theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer.dataset.index import INDEX_SCHEMA, read_images, write_index
from transfer.dataset.manifest import Dataset, Shard, Splitting, dataset_log, load_dataset
from transfer.dataset.removals import await_removals
from transfer.dataset.shard_plan import CopiedShard, OnCopied
from transfer.dataset.shards import GROUPED_SHARD_SCHEMA, SHARD_SCHEMA, read_columns, stored_bytes, write_shard
from transfer.dataset.splits import TRAIN
from transfer.errors import AlreadyExistsError, DatasetError
from transfer.storage import Store, now_utc

logger = logging.getLogger(__name__)


def take_out(store: Store, name: str, digests: Collection[str], *, on_copied: OnCopied) -> Dataset:
    """Add a version of a dataset without the images of these digests; the latest version, if it stores none of them.

    Raises DatasetError if no image would be left in a split that has some, CorruptObjectError, ObjectNotFoundError,
    StorageError.
    """
    while True:
        latest = load_dataset(store, name)
        rows = rows_with(store, latest, digests)
        if not rows:
            return latest
        try:
            return _add_version(store, latest, rows, digests, on_copied)
        except AlreadyExistsError:
            continue  # An ingest added a version meanwhile.


def rows_with(store: Store, dataset: Dataset, digests: Collection[str]) -> dict[str, np.ndarray]:
    """Stored rows with these digests, also removed ones: int64 [n], by the SHA-256 of the shard; no empty ones.

    Raises as `read_images`.
    """
    wanted = column_of(digests)
    shards = [shard.whole for shard in dataset.shards]
    tables = read_images(store, dataset, ["sha256"], shards)
    found = {
        shard.sha256: np.flatnonzero(pc.is_in(table["sha256"], wanted).to_numpy())
        for shard, table in zip(shards, tables, strict=True)
    }
    return {sha256: rows for sha256, rows in found.items() if len(rows)}


def column_of(digests: Collection[str]) -> pa.Array:
    """Digests as the index has them."""
    return pa.array(sorted(map(bytes.fromhex, digests)), pa.binary(32))


def check_left(store: Store, name: str, digests: Collection[str]) -> None:
    """Raise DatasetError where `take_out` would, so that nothing is recorded that cannot be done."""
    latest = load_dataset(store, name)
    _counts_of(store, latest, _left(latest, rows_with(store, latest, digests)))


def _left(latest: Dataset, rows: Mapping[str, np.ndarray]) -> list[tuple[Shard, Shard]]:
    """The shards that have such rows, each with what stays of it."""
    return [(shard, shard.without(rows[shard.sha256])) for shard in latest.shards if shard.sha256 in rows]


def _counts_of(store: Store, latest: Dataset, left: Sequence[tuple[Shard, Shard]]) -> dict[str, dict[str, int]]:
    """Images of each split and class that are left. Raises DatasetError if none are in a split that had some."""
    counts = {split: dict(of_split) for split, of_split in latest.counts.items()}
    tables = read_images(store, latest, ["label", "sha256"], [shard for shard, _ in left])
    for (shard, stays), table in zip(left, tables, strict=True):
        gone = np.isin(shard.live_rows(), stays.live_rows(), invert=True)
        for label in table["label"].to_numpy()[gone].tolist():
            counts[shard.split][latest.classes[label]] -= 1
    for split, of_split in counts.items():
        if any(latest.counts[split].values()) and not any(of_split.values()):
            # Models would be judged by another split than before, and nothing would say so.
            where = "to train on" if split == TRAIN else f"in {split}"
            raise DatasetError(
                f"Without these images, {latest.reference} would have none {where}.",
                advice=f"Add other images to the source, so that some come to {split}, and ingest them first.",
            )
    return counts


def _add_version(
    store: Store, latest: Dataset, rows: dict[str, np.ndarray], digests: Collection[str], on_copied: OnCopied
) -> Dataset:
    left = _left(latest, rows)
    counts = _counts_of(store, latest, left)
    for split, of_split in counts.items():
        for label, count in of_split.items():
            if not count and latest.counts[split][label]:
                logger.warning("Without these images, %s has none of the class %s in %s.", latest.name, label, split)
    copied = [_copy(store, latest, shard, stays) for shard, stays in left if stays.rows]
    on_copied(copied)
    kept = [shard for shard in latest.shards if shard.sha256 not in rows]
    shards = [*kept, *(each.shard for each in copied)]
    tables = read_images(store, latest, INDEX_SCHEMA.names, [stays for _, stays in left if stays.rows])
    new = {each.shard.sha256: table for each, table in zip(copied, tables, strict=True)}
    changes = {
        "number": latest.number + 1,
        "parent": latest.number,
        "created": now_utc(),
        "shards": shards,
        "index": write_index(store, shards, new=new, parent=latest),
        "counts": counts,
        "splitting": _without(latest.splitting, digests),
    }
    dataset = latest.model_copy(update=changes)
    dataset_log(store, latest.name).append(dataset.model_dump(), number=dataset.number)
    # What a failed command left may have been found, and removed before this version named it.
    await_removals(store, dataset)
    for each, (shard, stays) in zip(copied, [each for each in left if each[1].rows], strict=True):
        if not store.exists(each.shard.name):
            _copy(store, latest, shard, stays)
    if not all(store.exists(part.name) for part in dataset.index):
        write_index(store, shards, new=new, parent=latest)
    on_copied(copied)
    return dataset


def _without(splitting: Splitting | None, digests: Collection[str]) -> Splitting | None:
    if splitting is None:
        return None
    placed = {digest: split for digest, split in splitting.placed.items() if digest not in digests}
    without = splitting.model_copy(update={"placed": placed})
    return None if without.is_by_content else without


def _copy(store: Store, dataset: Dataset, shard: Shard, stays: Shard) -> CopiedShard:
    """Write what stays of a shard as a new one."""
    schema = GROUPED_SHARD_SCHEMA if dataset.groups_in_shards else SHARD_SCHEMA
    columns = read_columns(store, shard.whole, [name for name in schema.names if name != "image"])
    rows = stays.live_rows()
    written = write_shard(
        store,
        _rows(columns, stored_bytes(store, shard), rows.tolist()),
        split=shard.split,
        grouped=dataset.groups_in_shards,
    )
    origins = np.stack([np.zeros(len(rows), np.int64), rows], axis=1)
    return CopiedShard(written, (shard,), origins, columns["label"].to_numpy()[rows])


def _rows(columns: pa.Table, images: Iterator[tuple[str, bytes]], chosen: Sequence[int]) -> Iterator[dict[str, Any]]:
    stays = {*chosen}
    for number, (row, (_, image)) in enumerate(zip(columns.to_pylist(), images, strict=True)):
        if number in stays:
            yield {**row, "image": image}
