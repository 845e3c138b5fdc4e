"""The images of a source before any of them is stored: listed, checked, and selected for a version.

Ingest makes a version from the selected images; `rehearsal.py` predicts its outcome without writing anything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from transfer.config import Config
from transfer.dataset.classes import check_counts, check_given, class_order, vanished_classes, warnings_of
from transfer.dataset.decisions import Decided, read_decided
from transfer.dataset.file_cache import SeenLog, digest_of_check
from transfer.dataset.ingest_tasks import Candidate, Limits, check_batch
from transfer.dataset.listing import CheckedColumns, Listing, as_words, batches, find_words, list_source
from transfer.dataset.manifest import (
    FORGOTTEN,
    MISSING,
    UNREADABLE,
    Dataset,
    Reject,
    Splitting,
    check_reject_share,
    counted,
)
from transfer.dataset.shards import Images, RecordedShard, unique_images
from transfer.dataset.small_classes import place_images
from transfer.dataset.sources import Source, unused_columns
from transfer.dataset.sources.table import none_there
from transfer.dataset.sources.tabular import is_table
from transfer.dataset.splits import NONE_GIVEN, SPLITS, TEST, TRAIN, VALIDATION, group_in_two_splits
from transfer.errors import DatasetError
from transfer.runtime.parallel import on_cluster, parallel_map, process_count
from transfer.runtime.progress import progress
from transfer.storage import Store

logger = logging.getLogger(__name__)

BATCH_IMAGES = 64
BATCH_SIZE_BYTES = 32 * 1024**2


@dataclass(frozen=True)
class Candidates:
    """The listing of a source, and the decisions about its classes."""

    config: Config
    store: Store
    source: Source
    listing: Listing
    decided: Decided

    @property
    def limits(self) -> Limits:
        """Limits that an image must keep."""
        return Limits.of(self.config.dataset)

    @property
    def bytes_travel(self) -> bool:
        """Whether tasks carry the bytes of images, judged by the first image."""
        return on_cluster() and len(self.listing) > 0 and self.source.is_local(self.listing.key(0))

    @property
    def uri(self) -> str:
        """Path or address of the images."""
        return str(self.source.description["uri"])

    @property
    def seen_log(self) -> SeenLog:
        """Log of the results of earlier ingests for the same files."""
        check = digest_of_check(self.limits._asdict())
        return SeenLog(self.store, self.config.dataset_name, source=self.uri, check=check)

    def known_classes(self, parent: Dataset | None) -> list[str]:
        """Classes of the parent version that remain; they are the first classes of the new version."""
        return self.decided.known_classes(parent, renames=self.config.dataset.rename_classes)

    def class_order(self, known: Sequence[str], *, labels: Sequence[str] | None = None) -> list[str]:
        """Classes of the new version, the known ones first. `labels`: default is those listed. Raises DatasetError."""
        labels = self.listing.labels if labels is None else labels
        may_be_splits = self.config.dataset.splits is not None
        keys = self.listing.image_keys()
        return class_order(labels, known, source=self.uri, keys=keys, may_be_splits=may_be_splits)

    @cached_property
    def splitting(self) -> Splitting:
        """How images are assigned to splits."""
        options = self.config.dataset
        named = self.listing.given.split_names | set(options.splits or {})
        by_column = f"the column `{options.split_column}`"
        group_column, pattern = options.group_column, options.group_pattern
        return Splitting(
            given=tuple(split for split in SPLITS if split in named),
            given_by=None if not named else by_column if options.split_column else "folders",
            groups_by=f"column `{group_column}`" if group_column else f"pattern `{pattern}`" if pattern else None,
            groups_in_shards=bool(group_column or pattern),
            validation=0.0 if VALIDATION in named else options.validation,
            test=0.0 if TEST in named else options.test,
        )

    def check_given(self) -> None:
        """Raise DatasetError if the splits and groups that the source gives contradict each other; no image is read."""
        listing = self.listing
        self.check_given_classes(np.arange(len(listing)))
        if rows := group_in_two_splits(listing.given):
            group = listing.given.group_names[listing.given.groups[rows[0]]]
            one, other = (f"{listing.key(row)} in {SPLITS[listing.given.splits[row]]}" for row in rows)
            raise DatasetError(
                f"The group `{group}` ({self.splitting.groups_by}) is in two given splits: {one}, {other}.",
                advice="Give all images of a group the same split, or leave the groups out.",
            )
        pattern = self.config.dataset.group_pattern
        if pattern is not None and len(listing) and not listing.given.group_names:
            raise DatasetError(
                f"dataset.group_pattern is `{pattern}`, which is found in no key; the first one is {listing.key(0)}.",
                advice="A key is an image's path in the source. Correct the pattern, or leave it out.",
            )

    def check_given_classes(self, rows: np.ndarray) -> None:
        """Raise DatasetError if a class has no training images among those rows."""
        # The last column is NONE_GIVEN.
        table = np.zeros((len(self.listing.labels), len(SPLITS) + 1), np.int64)
        np.add.at(table, (self.listing.label_codes[rows], self.listing.given.splits[rows]), 1)
        check_given(dict(zip(self.listing.labels, table.tolist(), strict=True)))

    def carried(self, key: str, size_bytes: int = -1) -> bytes | Reject | None:
        """Read an image that only this machine can read, for a worker; None if the worker can read it itself."""
        limit = self.limits.max_file_size_bytes
        if not on_cluster() or not self.source.is_local(key) or size_bytes > limit:
            return None
        return self.source.read(key, max_size_bytes=limit)


def list_candidates(config: Config, store: Store, source: Source, *, most: int | None = None) -> Candidates:
    """List a source, up to `most` files of it; no image is read. Raises DatasetError, StorageError."""
    decided = read_decided(store, config.dataset_name)
    dropped = {each.name: each.reason for each in decided.dropped}
    forgotten = {key: each.reason for each in decided.forgotten for key in each.keys}
    listing = list_source(
        source,
        renames=config.dataset.rename_classes,
        dropped=dropped,
        forgotten=forgotten,
        group_pattern=config.dataset.group_pattern,
        most=most,
    )
    return Candidates(config, store, source, listing, decided)


def check_images(candidates: Candidates, checked: CheckedColumns, rows: np.ndarray) -> None:
    """Read and decode the images in those rows of the listing, and add the results to `checked`."""
    sizes_bytes, most = candidates.listing.sizes_bytes[rows], candidates.limits.max_file_size_bytes
    answers = parallel_map(
        partial(check_batch, source=candidates.source, limits=candidates.limits),
        _batches(candidates, rows),
        processes=process_count(len(rows), size_bytes=int(sizes_bytes[sizes_bytes <= most].sum())),
        heavy=candidates.bytes_travel,
    )
    row = iter(rows.tolist())
    with progress("check", total=len(rows), unit="files") as advance, closing(answers):
        for batch in answers:
            for outcome in batch:
                checked.add(next(row), outcome)
            advance(len(batch))
    listed = len(candidates.listing)
    counts = (listed, len(rows), listed - len(rows))
    logger.info("%s images listed, %s read, %s known from before.", *(f"{count:,}" for count in counts))


def _batches(candidates: Candidates, rows: np.ndarray) -> Iterator[list[Candidate]]:
    listing = candidates.listing
    sizes_bytes = listing.sizes_bytes[rows]
    for start, stop in batches(sizes_bytes, max_images=BATCH_IMAGES, max_size_bytes=BATCH_SIZE_BYTES):
        yield [
            Candidate(key := listing.key(row), size_bytes, candidates.carried(key, size_bytes))
            for row, size_bytes in zip(rows[start:stop].tolist(), sizes_bytes[start:stop].tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Selection:
    """The images of a new version, and the files that it leaves out."""

    candidates: Candidates
    known: list[str]
    """Classes of the parent version."""
    classes: list[str]
    images: Images
    splitting: Splitting
    rejects: list[Reject]

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Images of each split and class."""
        return self.images.counts(self.classes)

    @property
    def vanished(self) -> list[str]:
        """Classes of the parent version that have lost all of their images."""
        return vanished_classes(self.counts, self.known)

    @property
    def totals(self) -> dict[str, int]:
        """Images of each class."""
        return {name: sum(of_split[name] for of_split in self.counts.values()) for name in self.classes}

    def check(self, *, ledger: str | None) -> None:
        """Raise DatasetError if these images cannot be a version. `ledger`: name of the list of rejects in storage."""
        accepted, options = len(self.images), self.candidates.config.dataset
        refused = counted(self.rejects)
        if is_table(options.source) and not accepted and {each.reason for each in refused} <= {MISSING, UNREADABLE}:
            images = unused_columns(self.candidates.source).get("path_column", [])
            raise none_there(options.source, options.path_column, refused, images=images)
        check_reject_share(self.rejects, accepted=accepted, max_share=options.max_reject_share, ledger=ledger)
        self.candidates.check_given_classes(self.images.rows)
        splitting = self.candidates.splitting
        check_counts(
            self.counts,
            self.classes,
            vanished=self.vanished,
            min_images=options.min_images_per_class,
            shares=shares_of(splitting),
            given=splitting.given,
            groups_by=splitting.groups_by,
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings about classes, splits and groups, in sentences."""
        return [
            *warnings_of(self.counts, self.classes, vanished=self.vanished),
            *self._group_warnings(),
        ]

    def _group_warnings(self) -> Iterator[str]:
        given, by = self.candidates.listing.given, self.candidates.splitting.groups_by
        groups = given.groups[self.images.rows]
        has_group = groups != NONE_GIVEN
        if by is None or not len(groups):
            return
        sizes = np.bincount(groups[has_group], minlength=1)
        if 2 * sizes.max() > len(groups):
            largest = given.group_names[sizes.argmax()]
            yield f"The group `{largest}` ({by}) has {sizes.max():,} of {len(groups):,} images, which share one split."
        if not has_group.all():
            first = self.candidates.listing.key(int(self.images.rows[~has_group].min()))
            count = np.count_nonzero(~has_group)
            yield f"{count:,} of {len(groups):,} images have no group ({by}) and are split on their own: {first}."


def shares_of(splitting: Splitting) -> dict[str, float]:
    """Each split's share of the drawn images, train included."""
    shares = {VALIDATION: splitting.validation, TEST: splitting.test}
    return {TRAIN: 1 - splitting.validation - splitting.test, **shares}


def select(
    candidates: Candidates,
    checked: CheckedColumns,
    *,
    known: list[str],
    classes: list[str],
    latest: Dataset | None,
    recorded: Sequence[RecordedShard],
) -> Selection:
    """Select each image in `checked` once, with its class and its split, and collect the files that are left out.

    `latest` is the latest version of the dataset, `recorded` its shards.
    """
    splitting, listing = candidates.splitting, candidates.listing
    checked, forgotten = _without_forgotten(candidates, checked)
    images, left_out = unique_images(
        listing,
        checked,
        np.array([classes.index(label) for label in listing.labels], np.int32),
        validation=splitting.validation,
        test=splitting.test,
        may_straddle=candidates.config.dataset.prefer == TEST,
    )
    if splitting.groups_by is None:
        splits, placed = place_images(
            images,
            listing.given.splits[images.rows] <= SPLITS.index(TRAIN),
            shares=shares_of(splitting),
            placed=latest.splitting.placed if latest and latest.splitting else {},
            recorded=recorded,
        )
        images, splitting = replace(images, splits=splits), splitting.model_copy(update={"placed": placed})
    rejects = [*listing.rejects, *checked.refused.values(), *forgotten, *left_out]
    return Selection(candidates, known, classes, images, splitting, rejects)


def _without_forgotten(candidates: Candidates, checked: CheckedColumns) -> tuple[CheckedColumns, list[Reject]]:
    """The results without those of images that are to be forgotten, which become rejects."""
    reasons = {each.sha256: each.reason for each in candidates.decided.forgotten}
    if not reasons:
        return checked, []
    digests = sorted(reasons)
    places = find_words(as_words(bytes.fromhex("".join(digests)), 32), checked.words())
    rejects = [
        Reject(
            candidates.listing.key(checked.rows[row]),
            FORGOTTEN,
            f"the image was forgotten: {reasons[digests[places[row]]]}",
        )
        for row in np.flatnonzero(places >= 0).tolist()
    ]
    return checked.chosen(places < 0), rejects
