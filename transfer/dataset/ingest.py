"""From a source to an immutable dataset version, in two parallel passes.

1. Check: each image is read and decoded once, those excepted that an earlier ingest has seen and that are unchanged
   (`file_cache.py`). Only what is known about it comes back.
2. Plan: which images are kept, in which split and shard, and which shards of the latest version stay (`shards.py`).
3. Write: each new shard is built from the source where it is written.

Then the ledger of rejects, and last the version itself. Nothing exists for a reader before that; what a failed ingest
has written is found by the next one under its content's name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np

from transfer.config import Config
from transfer.dataset.candidates import Candidates, check_images, list_candidates, select
from transfer.dataset.classes import no_classes
from transfer.dataset.decisions import read_decided
from transfer.dataset.ingest_tasks import ChangedError, Row, ShardTask, build_shard
from transfer.dataset.listing import CheckedColumns
from transfer.dataset.manifest import Dataset, Shard, count_rejects, dataset_log, latest_dataset, write_ledger
from transfer.dataset.shards import Images, ParentShard, PlannedShard, moved_images, plan_shards, read_columns
from transfer.dataset.sources import Source, open_source
from transfer.dataset.splits import NONE_GIVEN, TRAIN, group_hashes
from transfer.errors import AlreadyExistsError, DatasetError
from transfer.runtime.parallel import parallel_map, process_count
from transfer.runtime.progress import progress
from transfer.storage import Store, now_utc

logger = logging.getLogger(__name__)

PARENT_READERS = 8


def ingest(config: Config, store: Store) -> Dataset:
    """Bring the images of `config.dataset` into `store`, which is the one that `config.storage` describes.

    Returns the new version, or the latest one when it has the same images with the same labels in the same splits
    and on the same background, seen with the same depth.
    Runs on the Ray cluster when Ray is initialized, else in local processes. Raises DatasetError when the source or its
    images cannot be used as asked, AlreadyExistsError when others keep adding versions meanwhile, StorageError.
    """
    with open_source(config.dataset, config.storage) as source:
        while True:
            try:
                return _ingest_as_decided(config, store, source)
            except _DecidedMeanwhileError:
                logger.warning("What holds for the classes of %s changed meanwhile: again.", config.dataset_name)


class _DecidedMeanwhileError(Exception):
    """Somebody dropped or restored a class, or had the dataset start over, since the source was listed."""


def _ingest_as_decided(config: Config, store: Store, source: Source) -> Dataset:
    """List, check and add a version as it is decided now. Raises _DecidedMeanwhileError when that changes."""
    candidates = list_candidates(config, store, source)
    _check_before_reading(candidates)
    known, unknown = candidates.seen_log.recall(candidates.listing)
    try:
        return _ingest(candidates, known, unknown)
    except ChangedError as error:
        if len(unknown) == len(candidates.listing):
            raise
        logger.warning("%s Perhaps its time and size did not show it: all files are read again.", error.message)
        return _ingest(candidates, CheckedColumns(), np.arange(len(candidates.listing)))


def _ingest(candidates: Candidates, checked: CheckedColumns, unknown: np.ndarray) -> Dataset:
    """Check the rows of the listing of which nothing is known, and add a version of what is in `checked` then."""
    check_images(candidates, checked, unknown)
    candidates.seen_log.add(candidates.listing, checked)
    try:
        return _add_version(candidates, checked)
    except AlreadyExistsError:
        name = candidates.config.dataset_name
        logger.warning("Another ingest added a version of %s meanwhile; planning again on it.", name)
        return _add_version(candidates, checked)


def _check_before_reading(candidates: Candidates) -> None:
    """Find what names alone tell before hours are spent on reading."""
    if not candidates.listing.labels:
        ledger = write_ledger(candidates.store, candidates.listing.rejects)
        left_out = f"the {len(candidates.listing.rejects)} other things there are listed in {ledger}" if ledger else ""
        raise no_classes(candidates.uri, beside=left_out)
    candidates.check_given()
    parent = candidates.decided.history(latest_dataset(candidates.store, candidates.config.dataset_name))
    candidates.class_order(candidates.known_classes(parent))


def _check_still_decided(candidates: Candidates) -> None:
    if read_decided(candidates.store, candidates.config.dataset_name) != candidates.decided:
        raise _DecidedMeanwhileError


def _add_version(candidates: Candidates, checked: CheckedColumns) -> Dataset:
    """Plan against the latest version, write what is missing, and add the version."""
    # Hours may have passed since it was read, and more pass while shards are written.
    _check_still_decided(candidates)
    store, options, name = candidates.store, candidates.config.dataset, candidates.config.dataset_name
    latest = latest_dataset(store, name)
    parent = candidates.decided.history(latest)
    known = candidates.known_classes(parent)
    classes = candidates.class_order(known)
    selection = select(candidates, checked, known=known, classes=classes)
    images = selection.images
    ledger = write_ledger(store, selection.rejects)
    selection.check(ledger=ledger)
    for warning in selection.warnings:
        logger.warning("%s", warning)

    splitting = None if candidates.splitting.is_by_content else candidates.splitting
    parent_shards = _read_parent(store, parent)
    if parent is not None:
        _warn_of_moved(candidates, images, parent_shards, since=parent.reference)
    plan = plan_shards(images, parent_shards, shard_size_bytes=options.shard_size_bytes)
    if (
        parent is not None
        and plan.leaves_as_it_is(parent.shards)
        and (classes, options.background, options.image_depth, splitting)
        == (parent.classes, parent.background, parent.depth, parent.splitting)
    ):
        logger.info("%s has these images already.", parent.reference)
        if ledger != parent.rejects:
            logger.info("What was refused this time is in %s.", ledger)
        return parent
    number = latest.number + 1 if latest else 1
    dataset = Dataset(
        name=name,
        number=number,
        parent=parent.number if parent else None,
        created=now_utc(),
        indices_from=parent.indices_from if parent and len(known) == len(parent.classes) else number,
        classes=classes,
        shards=[*plan.kept, *_write_shards(candidates, images, plan.new)],
        counts=selection.counts,
        rejects=ledger,
        reject_counts=count_rejects(selection.rejects),
        source=candidates.source.description,
        background=options.background,
        depth=options.image_depth,
        splitting=splitting,
    )
    _check_still_decided(candidates)
    dataset_log(store, name).append(dataset.model_dump(), number=dataset.number)
    logger.info("Splits: %s.", candidates.splitting.title)
    logger.info(
        "%s: %d images, %d of %d shards new.", dataset.reference, len(images), len(plan.new), len(dataset.shards)
    )
    return dataset


def _read_parent(store: Store, parent: Dataset | None) -> list[ParentShard]:
    """Read which images the shards of the parent version hold, not the images."""
    has_groups = parent is not None and parent.splitting is not None and parent.splitting.groups_in_shards

    def read(shard: Shard) -> ParentShard:
        table = read_columns(store, shard, ["sha256", "label", *(["group"] if has_groups else [])])
        groups = group_hashes(table["group"].to_pylist() if has_groups else [None] * len(table))
        digests = bytes.fromhex("".join(table["sha256"].to_pylist()))
        words = np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64)
        return ParentShard(shard, words, table["label"].to_numpy(), groups)

    with ThreadPoolExecutor(PARENT_READERS) as pool:
        return list(pool.map(read, parent.shards if parent else []))


def _warn_of_moved(candidates: Candidates, images: Images, parent: Sequence[ParentShard], *, since: str) -> None:
    for (before, now), places in moved_images(images, parent).items():
        trained = f" Models of earlier versions were trained on {'it' if len(places) == 1 else 'them'}."
        logger.warning(
            "%s, the first of them %s.%s",
            f"{len(places):,} image{'' if len(places) == 1 else 's'} moved from {before} to {now} since {since}",
            candidates.listing.key(int(images.rows[places].min())),
            trained if before == TRAIN else "",
        )


def _write_shards(candidates: Candidates, images: Images, planned: Sequence[PlannedShard]) -> list[Shard]:
    """Pass 2."""
    total = sum(len(shard.images) for shard in planned)
    size_bytes = sum(int(images.sizes_bytes[shard.images].sum()) for shard in planned)
    answers = parallel_map(
        partial(build_shard, source=candidates.source, limits=candidates.limits, storage=candidates.config.storage),
        (_shard_task(candidates, images, shard) for shard in planned),
        processes=min(process_count(total, size_bytes=size_bytes), len(planned)),
        heavy=candidates.bytes_travel,
    )
    shards = []
    with progress("store", total=total) as advance, closing(answers):
        for shard in answers:
            _check_arrived(candidates.store, shard)
            shards.append(shard)
            advance(shard.rows)
    return shards


def _shard_task(candidates: Candidates, images: Images, planned: PlannedShard) -> ShardTask:
    rows, given = [], candidates.listing.given
    for place in planned.images.tolist():
        row = int(images.rows[place])
        key, group = candidates.listing.key(row), int(given.groups[row])
        rows.append(
            Row(
                key=key,
                label=int(images.labels[place]),
                sha256=images.words[place].astype(">u8").tobytes().hex(),
                width=int(images.widths[place]),
                height=int(images.heights[place]),
                group=None if group == NONE_GIVEN else given.group_names[group],
                carried=candidates.carried(key),
            )
        )
    return ShardTask(planned.split, rows, candidates.splitting.groups_in_shards)


def _check_arrived(store: Store, shard: Shard) -> None:
    """A worker on another machine may have written to a folder of its own by the same name."""
    if not store.exists(shard.name):
        raise DatasetError(
            f"A worker wrote {shard.name}, and it is not in {store.uri}.",
            advice="Storage must be one place for all machines: an s3:// bucket, or a folder that all of them mount.",
        )
