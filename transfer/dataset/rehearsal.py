"""A prediction of what ingest would do with a source: the same listing, checks and selection, without writing.

A small source is read completely, so the result is that of ingest. Of a large source every k-th file is read:
ingest will refuse the files that are refused here, and `unknown` names what only ingest can find out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from transfer.config import Config, DatasetConfig
from transfer.dataset.candidates import Candidates, Selection, check_images, list_candidates, select, shares_of
from transfer.dataset.classes import check_counts, no_classes, vanished_classes
from transfer.dataset.index import read_recorded
from transfer.dataset.manifest import check_reject_share, count_rejects, counted, latest_dataset
from transfer.dataset.sources import is_packed, open_source
from transfer.dataset.splits import SPLITS, TRAIN
from transfer.runtime.numbers import percents_apart
from transfer.storage import Store

MOST_LISTED = 100_000
"""Largest number of objects that are listed under a prefix (one request a thousand). Other sources are listed fully."""
MOST_READ = 2_000
MOST_READ_SIZE_BYTES = 256 * 1024**2
_SHOWN = 3
# A split is named if it would be empty in more than one of a thousand datasets of that size.
_LIKELY_EMPTY = 1e-3


@dataclass(frozen=True)
class Rehearsal:
    """The predicted result of an ingest.

    If `unknown` is not empty, `classes` are upper bounds and `splits` are expected values.
    """

    files: int
    """Number of files in class folders, or with a label."""
    known: int
    """Number of these files that were read, now or by an earlier ingest."""
    classes: dict[str, int]
    """Images of each class."""
    splits: dict[str, int]
    rejected: dict[str, int]
    """Number of files that are left out, by reason."""
    split_by: str
    """How images are assigned to splits."""
    warnings: list[str]
    """Warnings about classes, splits and groups, in sentences; only if all images were read."""
    unknown: list[str]
    """What only ingest can find out, in sentences."""

    @property
    def images(self) -> int:
        """Images of all classes together."""
        return sum(self.classes.values())


@contextmanager
def listed_candidates(config: Config, store: Store) -> Iterator[Candidates | None]:
    """The listed images of the source, which can be read inside the block.

    None for an archive and for TFDS, whose content is known only after unpacking. Raises DatasetError for a source
    without classes, StorageError.
    """
    if is_packed(config.dataset.source):
        yield None
        return
    with open_source(config.dataset, config.storage) as source:
        is_prefix = source.description["kind"] == "folder" and config.dataset.source.startswith("s3://")
        candidates = list_candidates(config, store, source, most=MOST_LISTED if is_prefix else None)
        if not candidates.listing.labels:
            found = ", ".join(reject.key for reject in candidates.listing.rejects[:_SHOWN])
            raise no_classes(config.dataset.source, beside=f"among what is there: {found}" if found else "")
        if candidates.listing.is_whole:
            candidates.check_given()
        yield candidates


def known_classes(candidates: Candidates) -> list[str]:
    """Classes of the latest version that remain in the next one. Raises CorruptObjectError, StorageError."""
    latest = latest_dataset(candidates.store, candidates.config.dataset_name)
    return candidates.known_classes(candidates.decided.history(latest))


def classes_of(candidates: Candidates, known: Sequence[str]) -> list[str]:
    """The classes of the next version, as far as they are listed. Raises DatasetError as ingest does."""
    if candidates.listing.is_whole:
        return candidates.class_order(known)
    # The listing may end before a class, which is not missing then.
    labels = sorted({*candidates.listing.labels, *known})
    return labels if len(labels) == 1 else candidates.class_order(known, labels=labels)


def rehearse(candidates: Candidates, *, known: list[str], classes: list[str]) -> Rehearsal:
    """Read a limited number of images, and select among them. Raises DatasetError as ingest does.

    `known`: the result of `known_classes`. `classes`: that of `classes_of`.
    """
    listing, options = candidates.listing, candidates.config.dataset
    checked, unread = candidates.seen_log.recall(listing)
    step = _step(candidates, unread)
    check_images(candidates, checked, unread[::step])
    left = np.delete(unread, np.s_[::step])
    is_all = listing.is_whole and not len(left)
    latest = latest_dataset(candidates.store, candidates.config.dataset_name)
    # Where not all was read, nobody asks for the splits.
    recorded = read_recorded(candidates.store, latest) if is_all else []
    selection = select(candidates, checked, known=known, classes=classes, latest=latest, recorded=recorded)
    if is_all:
        selection.check(ledger=None)
        images, unknown, warnings = selection.totals, list[str](), selection.warnings
        splits = {split: sum(of_split.values()) for split, of_split in selection.counts.items()}
    else:
        not_read = Counter(listing.labels[code] for code in listing.label_codes[left].tolist())
        images = {name: total + not_read[name] for name, total in selection.totals.items()}
        if listing.is_whole:
            _check_at_best(selection, images, options)
        splits = _expected_splits(candidates, np.concatenate([selection.images.rows, left]))
        unknown = [*_not_read(candidates, left, step), *_likely_refusals(selection, splits, options)]
        warnings = []
    return Rehearsal(
        files=len(listing),
        known=len(listing) - len(left),
        classes=images,
        splits=splits,
        rejected=count_rejects(selection.rejects),
        split_by=(selection if is_all else candidates).splitting.title,
        warnings=warnings,
        unknown=unknown,
    )


def _step(candidates: Candidates, unread: np.ndarray) -> int:
    """The k of "every k-th unread file is read"; 1 if the files are few and small in total."""
    sizes_bytes = candidates.listing.sizes_bytes[unread]
    is_read = (sizes_bytes > 0) & (sizes_bytes <= candidates.limits.max_file_size_bytes)
    size_bytes = int(sizes_bytes[is_read].sum())
    return max(1, -(-len(unread) // MOST_READ), -(-size_bytes // MOST_READ_SIZE_BYTES))


def _expected_splits(candidates: Candidates, rows: np.ndarray) -> dict[str, int]:
    """Expected number of images in each split for those rows: given images, and its share of the others."""
    given = candidates.listing.given.splits[rows]
    held_out = {split: int(np.count_nonzero(given == SPLITS.index(split))) for split in SPLITS if split != TRAIN}
    drawn = len(rows) - sum(held_out.values())
    shares = shares_of(candidates.splitting)
    expected = {split: count + round(drawn * shares[split]) for split, count in held_out.items()}
    return {TRAIN: len(rows) - sum(expected.values()), **expected}


def _check_at_best(selection: Selection, classes: dict[str, int], options: DatasetConfig) -> None:
    """Raise DatasetError if ingest would refuse the source even if every unread file were a valid image."""
    accepted = sum(classes.values())
    check_reject_share(selection.rejects, accepted=accepted, max_share=options.max_reject_share, ledger=None)
    counts = {split: classes if split == TRAIN else dict.fromkeys(classes, 0) for split in SPLITS}
    vanished = vanished_classes(counts, selection.known)
    check_counts(counts, [*classes], vanished=vanished, min_images=options.min_images_per_class, shares={})


def _not_read(candidates: Candidates, left: np.ndarray, step: int) -> Iterator[str]:
    files = len(candidates.listing)
    if not candidates.listing.is_whole:
        listed = files + len(candidates.listing.rejects)
        yield f"The listing ended after {listed:,} files. What comes behind them, classes too, is not known."
    if len(left):
        yield (
            f"{files - len(left):,} of {files:,} files were read, one of each {step:,}. Which of the others are images "
            "and which are copies is not known."
        )


def _likely_refusals(selection: Selection, splits: dict[str, int], options: DatasetConfig) -> Iterator[str]:
    refused = sorted(counted(selection.rejects))
    share = len(refused) / max(len(refused) + len(selection.images), 1)
    if share > options.max_reject_share:
        shown = "; ".join(f"{reject.key} ({reject.reason}: {reject.detail})" for reject in refused[:_SHOWN])
        found, limit = percents_apart(share, options.max_reject_share)
        yield (
            f"{found} of the files that were read are refused, and dataset.max_reject_share is "
            f"{limit}: ingest will probably refuse the source. {shown}"
        )
    splitting = selection.candidates.splitting
    images = sum(count for split, count in splits.items() if split == TRAIN or split not in splitting.given)
    for split, share in shares_of(splitting).items():
        if share > 0 and (1 - share) ** images > _LIKELY_EMPTY:
            yield (
                f"{images * share:.1f} of {images:,} images are expected in the {split} split: it may be empty, which "
                "ingest refuses."
            )
