"""From a source to an immutable dataset version, in three steps.

1. Check, in parallel: each image is read and decoded once, except unchanged images of an earlier ingest
   (`file_cache.py`). Only the results return, not the images.
2. Plan: which images are selected, in which split and shard, and which shards of the parent version stay (`shards.py`).
   The ledger of rejects is written.
3. Write, in parallel: each new shard is built where it is written. Its images are read from the source again, or
   copied from stored shards.

The version itself is written last, and readers see nothing before that. The next ingest reuses the shards of a failed
one, because shards are named by their content.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial

import numpy as np
import pyarrow as pa

from transfer.config import Config
from transfer.dataset.candidates import Candidates, check_images, list_candidates, select
from transfer.dataset.classes import no_classes
from transfer.dataset.decisions import read_decided
from transfer.dataset.forgetting import take_out
from transfer.dataset.index import INDEX_SCHEMA, read_recorded, write_index
from transfer.dataset.ingest_tasks import ChangedError, Row, ShardTask, build_shard
from transfer.dataset.listing import CheckedColumns, binary_column
from transfer.dataset.manifest import Dataset, Shard, count_rejects, dataset_log, latest_dataset, write_ledger
from transfer.dataset.removals import await_removals
from transfer.dataset.shard_plan import CopiedShard, OnCopied, PlannedShard, moved_images, plan_shards
from transfer.dataset.shards import Images, RecordedShard
from transfer.dataset.sources import Source, open_source
from transfer.dataset.splits import NONE_GIVEN, TRAIN
from transfer.errors import AlreadyExistsError, DatasetError
from transfer.runtime.parallel import parallel_map, process_count
from transfer.runtime.progress import progress
from transfer.storage import Store, now_utc

logger = logging.getLogger(__name__)


def ingest(config: Config, store: Store, *, on_copied: OnCopied = lambda _: None) -> Dataset:
    """Bring the images of `config.dataset` into `store`, the opened `config.storage`.

    Returns the new version, or the latest version if it has the same images with the same labels, splits,
    background and depth. Runs on the Ray cluster if Ray is initialized, else in local processes. Raises DatasetError if
    the source or its images cannot be used, AlreadyExistsError if other processes keep adding versions, StorageError.
    """
    with open_source(config.dataset, config.storage) as source:
        while True:
            try:
                return _ingest_as_decided(config, store, source, on_copied)
            except _DecidedMeanwhileError:
                logger.warning("What holds for the classes of %s changed meanwhile: again.", config.dataset_name)


class _DecidedMeanwhileError(Exception):
    """A class was dropped or restored, or the dataset started over, since the source was listed."""


def _ingest_as_decided(config: Config, store: Store, source: Source, on_copied: OnCopied) -> Dataset:
    """List, check and add a version by the current decisions. Raises _DecidedMeanwhileError if they change."""
    candidates = list_candidates(config, store, source)
    _check_before_reading(candidates)
    remembered, unread = candidates.seen_log.recall(candidates.listing)
    try:
        dataset = _ingest(candidates, remembered, unread, on_copied)
    except ChangedError as error:
        if len(unread) == len(candidates.listing):
            raise
        logger.warning("%s Perhaps its time and size did not show it: all files are read again.", error.message)
        dataset = _ingest(candidates, CheckedColumns(), np.arange(len(candidates.listing)), on_copied)
    forgotten = {each.sha256 for each in candidates.decided.forgotten}
    if forgotten and any(shard.removed for shard in dataset.shards):
        # A command that forgot images may have been killed between its decision and its version. This version has none
        # of them, but removed rows may.
        return take_out(store, dataset.name, forgotten, on_copied=on_copied)
    return dataset


def _ingest(candidates: Candidates, checked: CheckedColumns, unread: np.ndarray, on_copied: OnCopied) -> Dataset:
    """Check the rows `unread` of the listing, and add a version of the images in `checked`."""
    check_images(candidates, checked, unread)
    candidates.seen_log.add(candidates.listing, checked)
    try:
        return _add_version(candidates, checked, on_copied)
    except AlreadyExistsError:
        name = candidates.config.dataset_name
        logger.warning("Another ingest added a version of %s meanwhile; planning again on it.", name)
        return _add_version(candidates, checked, on_copied)


def _check_before_reading(candidates: Candidates) -> None:
    """Raise the errors that names alone show, before hours are spent on reading."""
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


def _add_version(candidates: Candidates, checked: CheckedColumns, on_copied: OnCopied) -> Dataset:
    """Plan against the latest version, write what is missing, and add the version."""
    # Hours may have passed since the decisions were read, and writing shards takes more.
    _check_still_decided(candidates)
    store, options, name = candidates.store, candidates.config.dataset, candidates.config.dataset_name
    latest = latest_dataset(store, name)
    parent = candidates.decided.history(latest)
    known_classes = candidates.known_classes(parent)
    classes = candidates.class_order(known_classes)
    recorded = read_recorded(store, latest)
    selection = select(candidates, checked, known=known_classes, classes=classes, latest=latest, recorded=recorded)
    images = selection.images
    ledger = write_ledger(store, selection.rejects)
    selection.check(ledger=ledger)
    for warning in selection.warnings:
        logger.warning("%s", warning)

    splitting = None if selection.splitting.is_by_content else selection.splitting
    parent_shards = recorded if parent else []
    if parent is not None:
        _warn_of_moved(candidates, images, parent_shards, since=parent.reference)
    # All shards of a version have the column of groups, or none has: also those without a grouped image.
    has_same_columns = parent is not None and parent.groups_in_shards == selection.splitting.groups_in_shards
    plan = plan_shards(images, parent_shards, shard_size_bytes=options.shard_size_bytes, same_columns=has_same_columns)
    if (
        parent is not None
        and plan.leaves_as_it_is(parent.shards)
        and (classes, options.background, options.image_depth, splitting)
        == (parent.classes, parent.background, parent.depth, parent.splitting)
    ):
        logger.info("%s has these images already.", parent.reference)
        if ledger and ledger != parent.rejects:
            logger.info("What was refused this time is in %s.", ledger)
        return parent
    new = _write_shards(candidates, images, plan.new)
    shards = [*plan.kept, *new]
    copied = [
        CopiedShard(shard, planned.sources, planned.origins, images.labels[planned.images])
        for shard, planned in zip(new, plan.new, strict=True)
        if planned.sources
    ]
    on_copied(copied)
    rows_of_new = {
        shard.sha256: _index_rows(candidates, images, planned) for shard, planned in zip(new, plan.new, strict=True)
    }
    number = latest.number + 1 if latest else 1
    dataset = Dataset(
        name=name,
        number=number,
        parent=parent.number if parent else None,
        created=now_utc(),
        indices_from=parent.indices_from if parent and len(known_classes) == len(parent.classes) else number,
        classes=classes,
        shards=shards,
        index=write_index(store, shards, new=rows_of_new, parent=parent),
        counts=selection.counts,
        rejects=ledger,
        reject_counts=count_rejects(selection.rejects),
        source=candidates.source.description,
        background=options.background,
        depth=options.image_depth,
        splitting=splitting,
    )

    def complete() -> None:
        """Write again what was found in storage because an old version or a failed ingest left it, and is removed."""
        await_removals(store, dataset)
        missing = [each for shard, each in zip(new, plan.new, strict=True) if not store.exists(shard.name)]
        if missing:
            _write_shards(candidates, images, missing)
        if not all(store.exists(part.name) for part in dataset.index):
            write_index(store, shards, new=rows_of_new, parent=parent)
        if ledger and not store.exists(ledger):
            write_ledger(store, selection.rejects)

    # Also before: if an image cannot be read any more by now, no version is added.
    complete()
    _check_still_decided(candidates)
    dataset_log(store, name).append(dataset.model_dump(), number=dataset.number)
    complete()
    on_copied(copied)
    logger.info("Splits: %s.", selection.splitting.title)
    logger.info(
        "%s: %d images, %d of %d shards new, %d of them with images of earlier ones.",
        *(dataset.reference, len(images), len(plan.new), len(dataset.shards), len(copied)),
    )
    return dataset


def _warn_of_moved(candidates: Candidates, images: Images, parent: Sequence[RecordedShard], *, since: str) -> None:
    for (before, now), places in moved_images(images, parent).items():
        trained = f" Models of earlier versions were trained on {'it' if len(places) == 1 else 'them'}."
        logger.warning(
            "%s, the first of them %s.%s",
            f"{len(places):,} image{'' if len(places) == 1 else 's'} moved from {before} to {now} since {since}",
            candidates.listing.key(int(images.rows[places].min())),
            trained if before == TRAIN else "",
        )


def _write_shards(candidates: Candidates, images: Images, planned: Sequence[PlannedShard]) -> list[Shard]:
    """Write the planned shards in parallel."""
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
                carried=None if planned.sources else candidates.carried(key),
            )
        )
    return ShardTask(planned.split, rows, candidates.splitting.groups_in_shards, planned.sources)


def _index_rows(candidates: Candidates, images: Images, planned: PlannedShard) -> pa.Table:
    """What the index lists of a shard."""
    rows, given = images.rows[planned.images], candidates.listing.given
    groups, is_grouped = given.groups[rows], candidates.splitting.groups_in_shards
    has_none = (groups == NONE_GIVEN) | (not is_grouped)
    columns = {
        "sha256": binary_column(images.words[planned.images].astype(">u8").tobytes(), 32),
        "label": images.labels[planned.images],
        "key": candidates.listing.keys.take(pa.array(rows)),
        "group": pa.array(given.group_names, pa.string()).take(pa.array(groups, mask=has_none)),
    }
    return pa.table(columns, schema=INDEX_SCHEMA)


def _check_arrived(store: Store, shard: Shard) -> None:
    """Raise DatasetError if a shard is missing: a worker on another machine may have its own folder of that name."""
    if not store.exists(shard.name):
        raise DatasetError(
            f"A worker wrote {shard.name}, and it is not in {store.uri}.",
            advice="Storage must be one place for all machines: an s3:// bucket, or a folder that all of them mount.",
        )
