"""From a source to an immutable dataset version, in two parallel passes.

1. Check: each image is read and decoded once, those excepted that an earlier ingest has seen and that are unchanged
   (`seen.py`). Only what is known about it comes back.
2. Plan: which images are kept, in which split and shard, and which shards of the latest version stay (`plan.py`).
3. Write: each new shard is built from the source where it is written.

Then the ledger of rejects, and last the version itself. Nothing exists for a reader before that; what a failed ingest
has written is found by the next one under its content's name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np

from transfer.config import Config
from transfer.dataset.classes import check_counts, class_order, vanished_classes
from transfer.dataset.listing import CheckedColumns, Listing, batches, list_source
from transfer.dataset.manifest import Dataset, Shard, dataset_log, latest_dataset
from transfer.dataset.parallel import on_cluster, parallel_map, process_count
from transfer.dataset.passes import Candidate, ChangedError, Limits, Row, ShardTask, build_shard, check_batch
from transfer.dataset.plan import Images, ParentShard, PlannedShard, plan_shards, unique_images
from transfer.dataset.rejects import Reject, check_reject_share, count_rejects, write_ledger
from transfer.dataset.seen import SeenLog, digest_of_check
from transfer.dataset.shards import read_columns
from transfer.dataset.sources import Source, open_source
from transfer.dataset.splits import TEST, TRAIN, VALIDATION
from transfer.errors import AlreadyExistsError, DatasetError
from transfer.progress import progress
from transfer.storage import Store

logger = logging.getLogger(__name__)

BATCH_IMAGES = 64
BATCH_SIZE_BYTES = 32 * 1024**2
PARENT_READERS = 8


def ingest(config: Config, store: Store) -> Dataset:
    """Bring the images of `config.dataset` into `store`, which is the one that `config.storage` describes.

    Returns the new version, or the latest one when it has the same images with the same labels in the same splits.
    Runs on the Ray cluster when Ray is initialized, else in local processes. Raises DatasetError when the source or its
    images cannot be used as asked, AlreadyExistsError when others keep adding versions meanwhile, StorageError.
    """
    with open_source(config.dataset, config.storage) as source:
        work = _Work(config, store, source, list_source(source, renames=config.dataset.rename_classes))
        _check_before_reading(work)
        known, unknown = work.seen_log.recall(work.listing)
        try:
            return _ingest(work, known, unknown)
        except ChangedError as error:
            if len(unknown) == len(work.listing):
                raise
            logger.warning("%s Perhaps its time and size did not show it: all files are read again.", error.message)
            return _ingest(work, CheckedColumns(), np.arange(len(work.listing)))


def _ingest(work: _Work, checked: CheckedColumns, unknown: np.ndarray) -> Dataset:
    """Check the rows of the listing of which nothing is known, and add a version of what is in `checked` then."""
    _check_images(work, checked, unknown)
    work.seen_log.add(work.listing, checked)
    try:
        return _add_version(work, checked)
    except AlreadyExistsError:
        name = work.config.dataset_name
        logger.warning("Another ingest added a version of %s meanwhile; planning again on it.", name)
        return _add_version(work, checked)


@dataclass(frozen=True)
class _Work:
    config: Config
    store: Store
    source: Source
    listing: Listing

    @property
    def limits(self) -> Limits:
        return Limits.of(self.config.dataset)

    @property
    def bytes_travel(self) -> bool:
        """Whether tasks carry images, judged by the first."""
        return on_cluster() and len(self.listing) > 0 and self.source.is_local(self.listing.key(0))

    @property
    def uri(self) -> str:
        return str(self.source.description["uri"])

    @property
    def seen_log(self) -> SeenLog:
        check = digest_of_check(self.limits._asdict())
        return SeenLog(self.store, self.config.dataset_name, source=self.uri, check=check)

    def class_order(self, parent: Dataset | None) -> list[str]:
        """Classes of the new version; the parent's are the first."""
        known = parent.classes if parent else []
        renames = self.config.dataset.rename_classes
        return class_order(self.listing.labels, known, renames=renames, source=self.uri)


def _check_before_reading(work: _Work) -> None:
    """Find what names alone tell before hours are spent on reading."""
    if not work.listing.labels:
        ledger = write_ledger(work.store, work.listing.rejects)
        left_out = f"; the {len(work.listing.rejects)} other things there are listed in {ledger}" if ledger else ""
        raise DatasetError(
            f"There are no images with a class in {work.uri}{left_out}.",
            advice="Put the images into one folder a class, <source>/<class>/<image>; in a table fill its labels.",
        )
    work.class_order(latest_dataset(work.store, work.config.dataset_name))


def _check_images(work: _Work, checked: CheckedColumns, unknown: np.ndarray) -> None:
    """Pass 1. Adds what is found in the images in those rows of the listing."""
    sizes_bytes, most = work.listing.sizes_bytes[unknown], work.limits.max_file_size_bytes
    answers = parallel_map(
        partial(check_batch, source=work.source, limits=work.limits),
        _candidates(work, unknown),
        processes=process_count(len(unknown), size_bytes=int(sizes_bytes[sizes_bytes <= most].sum())),
        heavy=work.bytes_travel,
    )
    rows = iter(unknown.tolist())
    with progress("check", total=len(unknown)) as advance, closing(answers):
        for batch in answers:
            for outcome in batch:
                checked.add(next(rows), outcome)
            advance(len(batch))
    counts = (len(work.listing), len(unknown), len(work.listing) - len(unknown))
    logger.info("%s images listed, %s read, %s known from before.", *(f"{count:,}" for count in counts))


def _candidates(work: _Work, rows: np.ndarray) -> Iterator[list[Candidate]]:
    sizes_bytes = work.listing.sizes_bytes[rows]
    for start, stop in batches(sizes_bytes, max_images=BATCH_IMAGES, max_size_bytes=BATCH_SIZE_BYTES):
        yield [
            Candidate(key := work.listing.key(row), size_bytes, _carried(work, key, size_bytes))
            for row, size_bytes in zip(rows[start:stop].tolist(), sizes_bytes[start:stop].tolist(), strict=True)
        ]


def _carried(work: _Work, key: str, size_bytes: int = -1) -> bytes | Reject | None:
    """Read what only this machine can read, for a worker of the cluster; None where the worker reads for itself."""
    limit = work.limits.max_file_size_bytes
    if not on_cluster() or not work.source.is_local(key) or size_bytes > limit:
        return None
    return work.source.read(key, max_size_bytes=limit)


def _add_version(work: _Work, checked: CheckedColumns) -> Dataset:
    """Plan against the latest version, write what is missing, and add the version."""
    options, name = work.config.dataset, work.config.dataset_name
    parent = latest_dataset(work.store, name)
    classes = work.class_order(parent)
    images, left_out = unique_images(
        work.listing,
        checked,
        np.array([classes.index(label) for label in work.listing.labels], np.int32),
        validation=options.validation,
        test=options.test,
    )
    rejects = [*work.listing.rejects, *checked.refused.values(), *left_out]
    ledger = write_ledger(work.store, rejects)
    check_reject_share(rejects, accepted=len(images), max_share=options.max_reject_share, ledger=ledger)
    counts = images.counts(classes)
    shares = {TRAIN: 1 - options.validation - options.test, VALIDATION: options.validation, TEST: options.test}
    vanished = vanished_classes(counts, classes[: len(parent.classes)] if parent else [])
    check_counts(counts, classes, vanished=vanished, min_images=options.min_images_per_class, shares=shares)
    if vanished:
        logger.warning("Without images now, with their indices kept: %s.", ", ".join(f"`{name}`" for name in vanished))

    plan = plan_shards(images, _read_parent(work.store, parent), shard_size_bytes=options.shard_size_bytes)
    if parent is not None and plan.leaves_as_it_is(parent.shards) and classes == parent.classes:
        logger.info("%s has these images already.", parent.reference)
        if ledger != parent.rejects:
            logger.info("What was refused this time is in %s.", ledger)
        return parent
    dataset = Dataset(
        name=name,
        number=parent.number + 1 if parent else 1,
        parent=parent.number if parent else None,
        classes=classes,
        shards=[*plan.kept, *_write_shards(work, images, plan.new)],
        counts=counts,
        rejects=ledger,
        reject_counts=count_rejects(rejects),
        source=work.source.description,
    )
    dataset_log(work.store, name).append(dataset.model_dump(), number=dataset.number)
    logger.info(
        "%s: %d images, %d of %d shards new.", dataset.reference, len(images), len(plan.new), len(dataset.shards)
    )
    return dataset


def _read_parent(store: Store, parent: Dataset | None) -> list[ParentShard]:
    """Read which images the shards of the parent version hold, not the images."""

    def read(shard: Shard) -> ParentShard:
        table = read_columns(store, shard, ["sha256", "label"])
        digests = bytes.fromhex("".join(table["sha256"].to_pylist()))
        words = np.frombuffer(digests, ">u8").reshape(-1, 4).astype(np.uint64)
        return ParentShard(shard, words, table["label"].to_numpy())

    with ThreadPoolExecutor(PARENT_READERS) as pool:
        return list(pool.map(read, parent.shards if parent else []))


def _write_shards(work: _Work, images: Images, planned: Sequence[PlannedShard]) -> list[Shard]:
    """Pass 2."""
    total = sum(len(shard.images) for shard in planned)
    size_bytes = sum(int(images.sizes_bytes[shard.images].sum()) for shard in planned)
    answers = parallel_map(
        partial(build_shard, source=work.source, limits=work.limits, storage=work.config.storage),
        (_shard_task(work, images, shard) for shard in planned),
        processes=min(process_count(total, size_bytes=size_bytes), len(planned)),
        heavy=work.bytes_travel,
    )
    shards = []
    with progress("store", total=total) as advance, closing(answers):
        for shard in answers:
            _check_arrived(work.store, shard)
            shards.append(shard)
            advance(shard.rows)
    return shards


def _shard_task(work: _Work, images: Images, planned: PlannedShard) -> ShardTask:
    rows = []
    for place in planned.images.tolist():
        key = work.listing.key(int(images.rows[place]))
        rows.append(
            Row(
                key=key,
                label=int(images.labels[place]),
                sha256=images.words[place].astype(">u8").tobytes().hex(),
                width=int(images.widths[place]),
                height=int(images.heights[place]),
                carried=_carried(work, key),
            )
        )
    return ShardTask(planned.split, rows)


def _check_arrived(store: Store, shard: Shard) -> None:
    """A worker on another machine may have written to a folder of its own by the same name."""
    if not store.exists(shard.name):
        raise DatasetError(
            f"A worker wrote {shard.name}, and it is not in {store.uri}.",
            advice="Storage must be one place for all machines: an s3:// bucket, or a folder that all of them mount.",
        )
