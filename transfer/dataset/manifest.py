"""Dataset versions: which shards, which classes, where they came from, and what was refused or left out.

A version's document is written last, when everything it names is in storage, and never changes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from transfer.catalog import layout
from transfer.catalog.layout import Number
from transfer.config import Depth
from transfer.errors import CorruptObjectError, DatasetError
from transfer.runtime.numbers import percents_apart
from transfer.storage import Log, Store, put_content

IGNORED = "ignored"
NO_CLASS_FOLDER = "no_class_folder"
MISSING = "missing"
UNREADABLE = "unreadable"
NO_LABEL = "no_label"
NO_PATH = "no_path"
DUPLICATE = "duplicate"
CONFLICTING_LABELS = "conflicting_labels"
DROPPED = "dropped"

# Not mistakes of the kind that `max_reject_share` is there to notice.
NOT_COUNTED = frozenset({IGNORED, DUPLICATE, DROPPED})
SHOWN = 5

LEDGER_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class Reject(NamedTuple):
    """One line of the ledger."""

    key: str
    reason: str
    detail: str


def write_ledger(store: Store, rejects: Sequence[Reject]) -> str | None:
    """Put the ledger, sorted, and return its name; None when there is nothing in it."""
    if not rejects:
        return None
    columns = [pa.array(column, pa.string()) for column in zip(*sorted(rejects), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=LEDGER_SCHEMA), sink, compression="zstd")
    name, _ = put_content(store, layout.ledger, sink.getvalue().to_pybytes())
    return name


def read_ledger(store: Store, name: str) -> pa.Table:
    """Read a ledger, verified by the digest in its name: columns `key`, `reason`, `detail`.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    return pq.read_table(pa.BufferReader(store.read_verified(name, layout.sha256_in(name))))


def count_rejects(rejects: Sequence[Reject]) -> dict[str, int]:
    """Count the lines of each reason."""
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def rejects_text(counts: Mapping[str, int]) -> str:
    """How many files, and why: `3 files refused: 1 no label, 2 unreadable`."""
    total = sum(counts.values())
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
    return f"{total:,} file{'' if total == 1 else 's'} refused: {reasons}"


def counted(rejects: Sequence[Reject]) -> list[Reject]:
    """Those that `dataset.max_reject_share` limits."""
    return [reject for reject in rejects if reject.reason not in NOT_COUNTED]


def check_reject_share(rejects: Sequence[Reject], *, accepted: int, max_share: float, ledger: str | None) -> None:
    """Raise DatasetError, naming the first rejects and the ledger, when a larger share than `max_share` is refused.

    The share is refused / (refused + accepted); copies and ignored files count on neither side. One refused image is
    borne in any number of them, unless `max_share` is 0. `ledger`: None where none was written.
    """
    refused = sorted(counted(rejects))
    if not is_too_many(len(refused), len(refused) + accepted, max_share=max_share):
        return
    share = len(refused) / (len(refused) + accepted)
    shown = "; ".join(f"{reject.key} ({reject.reason}: {reject.detail})" for reject in refused[:SHOWN])
    more = f"; and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
    listed = f" All of them are in {ledger}." if ledger else ""
    found, limit = percents_apart(share, max_share)
    raise DatasetError(
        f"{len(refused):,} of {len(refused) + accepted:,} images were refused ({found}), and "
        f"dataset.max_reject_share is {limit}: {shown}{more}.{listed}",
        advice="Mend or remove these files, leave them out with dataset.exclude, or raise dataset.max_reject_share.",
    )


def is_too_many(refused: int, images: int, *, max_share: float) -> bool:
    """Whether more of so many images are refused than `dataset.max_reject_share` bears: its share, rounded up."""
    return refused > math.ceil(round(max_share * images, 6))


class Shard(BaseModel):
    """One Parquet object of images, all of the same split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Its name in storage."""
    sha256: str
    split: str
    rows: int
    size_bytes: int
    """Size of the object; the images are stored uncompressed, so their bytes are nearly all of it."""


class Splitting(BaseModel):
    """How the images of a version came to be in their splits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: tuple[str, ...] = ()
    """Splits that the source gives. The others are drawn from train."""
    given_by: str | None = None
    """What gives them, in words."""
    groups_by: str | None = None
    """What says which images are a group, in words; None where each image is on its own."""
    groups_in_shards: bool = False
    """Whether the shards have the images' groups. Those of earlier releases do not."""
    validation: float
    """Share that is drawn; 0 for a split that is given."""
    test: float

    @property
    def is_by_content(self) -> bool:
        """Whether each image's own content alone decided."""
        return not self.given and self.groups_by is None

    @property
    def drawn(self) -> dict[str, float]:
        """Shares of the splits that are drawn, train left out, those of 0 too."""
        shares = {"validation": self.validation, "test": self.test}
        return {split: share for split, share in shares.items() if share > 0}

    @property
    def title(self) -> str:
        """The same in a line of words."""
        shares = ", ".join(f"{split} {100 * share:g} %" for split, share in self.drawn.items())
        by = f"group ({self.groups_by})" if self.groups_by else "each image's content"
        drawn = f"{shares} drawn by {by}" if shares else ""
        if not self.given:
            return drawn or "all images are in train"
        given = f"{', '.join(self.given)} as given by {self.given_by}"
        return f"{given}; {drawn}, from train" if drawn else given


class Dataset(BaseModel):
    """An immutable version of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    number: Number
    parent: Number | None
    """The version this one was derived from, whose unchanged shards it keeps."""
    created: str | None = None
    """When it was made, in UTC; None for versions of earlier releases."""
    indices_from: Number = 1
    """The first of the versions in a row that have the same indices for the same classes. A later one begins where
    classes were dropped, or where the dataset was started over."""
    label_kind: Literal["class"] = "class"
    """Each image has exactly one class."""
    classes: list[str]
    """A class's index is its place here. Later versions with the same `indices_from` only append."""
    shards: list[Shard]
    counts: dict[str, dict[str, int]]
    """Images of each split and class: `counts["train"]["daisy"]`."""
    rejects: str | None
    """Name of the ledger of everything that was refused or left out; None when there was nothing."""
    reject_counts: dict[str, int]
    """Ledger rows by reason."""
    source: dict[str, Any]
    background: str | None = None
    """Color, `#rrggbb`, that images with transparent pixels were put on; None: their alpha was dropped."""
    depth: Depth = "reject"
    """How its images of 16 bits a channel are seen; which of them are refused depends on it."""
    splitting: Splitting | None = None
    """How images came to be in their splits; None: each by its own content, as in versions of earlier releases."""

    @model_serializer(mode="wrap")
    def _as_earlier_releases_read_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if self.splitting is None:
            document.pop("splitting", None)
        if self.depth == "reject":
            document.pop("depth", None)
        return document

    @property
    def reference(self) -> str:
        """How a version is named for people: `flowers/00000003`."""
        return f"{self.name}/{self.number:08d}"

    @property
    def held_out_split(self) -> str:
        """The split that models are judged on: test, or validation where there is no test split."""
        return "test" if self.rows("test") else "validation"

    @property
    def untrained_classes(self) -> list[str]:
        """Classes without training images, in the order of their indices: no model answers them."""
        return [name for name in self.classes if not self.counts["train"].get(name)]

    def has_indices_of(self, other: Dataset) -> bool:
        """Whether an index is the same class in both, whatever its name; else names decide."""
        return self.name == other.name and self.indices_from == other.indices_from

    def rows(self, split: str) -> int:
        """Images in a split; 0 for a split that there is not."""
        return sum(shard.rows for shard in self.shards_of(split))

    def shards_of(self, split: str) -> list[Shard]:
        """Shards of a split, in their stored order."""
        return [shard for shard in self.shards if shard.split == split]


def load_dataset(store: Store, name: str, number: int | None = None) -> Dataset:
    """Load a version of a dataset, the latest unless `number` says which.

    Raises DatasetError when there is no version, ObjectNotFoundError when there is not this one, CorruptObjectError
    when it is damaged or of a format that this release does not know.
    """
    if number is not None:
        return parse_dataset(dataset_log(store, name).read(number), uri=store.uri)
    latest = latest_dataset(store, name)
    if latest is None:
        raise DatasetError(f"There is no dataset `{name}` in {store.uri}.", advice="Run `transfer ingest` first.")
    return latest


def latest_dataset(store: Store, name: str) -> Dataset | None:
    """Find the latest version of a dataset; None when there is none yet."""
    latest = dataset_log(store, name).latest()
    return None if latest is None else parse_dataset(latest[1], uri=store.uri)


def dataset_names(store: Store) -> list[str]:
    """Names of the datasets that have versions, by name. One listing."""
    matches = (
        re.fullmatch(layout.entry_pattern(layout.dataset_log), item.name) for item in store.list(f"{layout.DATASETS}/")
    )
    return sorted({match[1] for match in matches if match})


def dataset_log(store: Store, name: str) -> Log:
    """Open the log that holds the versions of a dataset."""
    return Log(store, layout.dataset_log(name))


def parse_dataset(document: dict[str, Any], *, uri: str) -> Dataset:
    """Read a version's document, as storage gives it. Raises CorruptObjectError when it is not one."""
    try:
        return Dataset.model_validate(document)
    except ValidationError as error:
        raise CorruptObjectError(
            f"A dataset version in {uri} does not read as one of format 1: "
            f"{error.error_count()} fields are missing or not as expected.",
            advice="It may have been written by a newer release: update, or ingest under another dataset.name.",
        ) from error
