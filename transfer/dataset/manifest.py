"""Dataset versions: their shards, classes and source, and the files that were refused or left out.

The document of a version is written last, after every object that it names, and never changes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

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
FORGOTTEN = "forgotten"

# Reasons that `max_reject_share` does not count, because they are no defects of the data.
NOT_COUNTED = frozenset({IGNORED, DUPLICATE, DROPPED, FORGOTTEN})
SHOWN = 5

LEDGER_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class Reject(NamedTuple):
    """One line of the ledger."""

    key: str
    reason: str
    detail: str


def write_ledger(store: Store, rejects: Sequence[Reject]) -> str | None:
    """Put the sorted ledger and return its name; None if there are no rejects."""
    if not rejects:
        return None
    columns = [pa.array(column, pa.string()) for column in zip(*sorted(rejects), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=LEDGER_SCHEMA), sink, compression="zstd")
    name, _ = put_content(store, layout.ledger, sink.getvalue().to_pybytes())
    return name


def count_rejects(rejects: Sequence[Reject]) -> dict[str, int]:
    """Count the lines of each reason."""
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def rejects_text(counts: Mapping[str, int]) -> str:
    """Describe rejects by reason: `3 files refused: 1 no label, 2 unreadable`."""
    total = sum(counts.values())
    reasons = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items())
    return f"{total:,} file{'' if total == 1 else 's'} refused: {reasons}"


def counted(rejects: Sequence[Reject]) -> list[Reject]:
    """The rejects that `dataset.max_reject_share` counts."""
    return [reject for reject in rejects if reject.reason not in NOT_COUNTED]


def check_reject_share(rejects: Sequence[Reject], *, accepted: int, max_share: float, ledger: str | None) -> None:
    """Raise DatasetError, with the first rejects and the ledger, if a larger share than `max_share` is refused.

    The share is refused / (refused + accepted); copies and ignored files do not count. One refused image is always
    accepted, unless `max_share` is 0. `ledger`: None if none was written.
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
    """Whether the number of refused images is above `max_share` of all images, rounded up."""
    return refused > math.ceil(round(max_share * images, 6))


class RowGroups(BaseModel):
    """The row groups of a shard, each of which can be read by itself, and the footer that says where they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[Annotated[int, Field(ge=1)], ...]
    """Rows of each row group, in stored order."""
    footer_size_bytes: Annotated[int, Field(ge=1)]
    """The footer is the end of the object."""
    footer_sha256: str


class Shard(BaseModel):
    """One Parquet object of images, all of the same split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the object in storage."""
    sha256: str
    split: str
    rows: int
    """Images that the version has of it."""
    size_bytes: int
    """Size of the object; the images are stored uncompressed, so their bytes are nearly all of it."""
    row_groups: RowGroups | None = None
    """None for shards of earlier releases, which can only be verified as a whole."""
    removed: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Rows of the object, ascending, whose images the version does not have any more. No reader of it sees them."""

    @model_validator(mode="after")
    def _rows_add_up(self) -> Shard:
        if self.row_groups is not None and sum(self.row_groups.rows) != self.stored_rows:
            found = f"{self.rows} and {len(self.removed)} removed ones"
            raise ValueError(f"its row groups have {sum(self.row_groups.rows)} rows, and it has {found}")
        if any(row >= after for row, after in pairwise([*self.removed, self.stored_rows])):
            raise ValueError(f"its removed rows are not ascending numbers below {self.stored_rows}")
        return self

    @model_serializer(mode="wrap")
    def _as_earlier_releases_wrote_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if self.row_groups is None:
            document.pop("row_groups", None)
        if not self.removed:
            document.pop("removed", None)
        return document

    @property
    def stored_rows(self) -> int:
        """Rows of the object, with the removed ones."""
        return self.rows + len(self.removed)

    @property
    def whole(self) -> Shard:
        """The same shard with all its stored rows."""
        return self.model_copy(update={"rows": self.stored_rows, "removed": ()}) if self.removed else self

    @property
    def rows_of_groups(self) -> tuple[int, ...]:
        """Rows of each part that can be read by itself, of each row group or of the whole shard; 0 if all went."""
        if self.row_groups is None or not self.removed:
            return (self.rows,) if self.row_groups is None else self.row_groups.rows
        ends = np.cumsum(self.row_groups.rows)
        removed = np.bincount(np.searchsorted(ends, self.removed, side="right"), minlength=len(ends))
        return tuple((np.array(self.row_groups.rows) - removed).tolist())

    def live_rows(self) -> np.ndarray:
        """Rows of the object that are not removed: int64 [rows], ascending."""
        return np.delete(np.arange(self.stored_rows), self.removed)

    def without(self, rows: np.ndarray) -> Shard:
        """The same shard without some of its rows, int64 [n], numbers in the object."""
        removed = np.union1d(np.array(self.removed, np.int64), rows)
        return self.model_copy(update={"rows": self.stored_rows - len(removed), "removed": tuple(removed.tolist())})


class IndexPart(BaseModel):
    """An object of a version's index (`index.py`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the object in storage."""
    sha256: str
    shards: Annotated[int, Field(ge=1)]
    """How many of the version's shards it lists: those that follow the shards of the parts before it."""
    rows: Annotated[int, Field(ge=1)]
    """Rows of the object. Shards that left the dataset since it was written are among them."""
    size_bytes: int


class Splitting(BaseModel):
    """How the images of a version were assigned to splits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    given: tuple[str, ...] = ()
    """Splits that the source gives. The others are drawn from the images in train."""
    given_by: str | None = None
    """Column or folders that give them, in words."""
    groups_by: str | None = None
    """Column or pattern that groups images, in words; None if images are not grouped."""
    groups_in_shards: bool = False
    """Whether the shards have a column of groups. Shards of earlier releases do not."""
    validation: float
    """Share that is drawn; 0 for a split that is given."""
    test: float
    placed: dict[str, str] = Field(default_factory=dict)
    """Images of small classes, by their SHA-256, that are in this split and not in the drawn one."""

    @model_serializer(mode="wrap")
    def _as_earlier_releases_read_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if not self.placed:
            document.pop("placed", None)
        return document

    @property
    def is_by_content(self) -> bool:
        """Whether only the content of each image decided its split."""
        return not self.given and self.groups_by is None and not self.placed

    @property
    def drawn(self) -> dict[str, float]:
        """Shares of the drawn splits, without train and without shares of 0."""
        shares = {"validation": self.validation, "test": self.test}
        return {split: share for split, share in shares.items() if share > 0}

    @property
    def title(self) -> str:
        """How images were assigned to splits, in one line."""
        shares = ", ".join(f"{split} {100 * share:g} %" for split, share in self.drawn.items())
        by = f"group ({self.groups_by})" if self.groups_by else "each image's content"
        images = f"{len(self.placed):,} image{'' if len(self.placed) == 1 else 's'}"
        placed = f" ({images} of small classes placed)" if self.placed else ""
        drawn = f"{shares} drawn by {by}{placed}" if shares else ""
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
    """The version from which this one was derived, and whose unchanged shards it contains."""
    created: str | None = None
    """Time of creation in UTC; None for versions of earlier releases."""
    indices_from: Number = 1
    """Number of the version since which classes have kept their indices. It changes if classes are dropped, or the
    dataset starts over."""
    label_kind: Literal["class"] = "class"
    """Each image has exactly one class."""
    classes: list[str]
    """Names of the classes, by index. Later versions with the same `indices_from` only append classes."""
    shards: list[Shard]
    index: tuple[IndexPart, ...] = ()
    """What all shards hold, without the images; empty for versions of earlier releases."""
    counts: dict[str, dict[str, int]]
    """Images of each split and class: `counts["train"]["daisy"]`."""
    rejects: str | None
    """Name of the ledger of all files that were refused or left out; None if there were none."""
    reject_counts: dict[str, int]
    """Number of ledger rows, by reason."""
    source: dict[str, Any]
    background: str | None = None
    """Color, `#rrggbb`, under transparent pixels; None: alpha was dropped."""
    depth: Depth = "reject"
    """How its images of 16 bits a channel are seen; which of them are refused depends on it."""
    splitting: Splitting | None = None
    """How images were assigned to splits; None: by the content of each image, as in versions of earlier releases."""

    @model_serializer(mode="wrap")
    def _as_earlier_releases_read_it(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if self.splitting is None:
            document.pop("splitting", None)
        if self.depth == "reject":
            document.pop("depth", None)
        if not self.index:
            document.pop("index", None)
        return document

    def __hash__(self) -> int:
        return hash((self.name, self.number))

    @property
    def reference(self) -> str:
        """Name and number of the version for people: `flowers/00000003`."""
        return f"{self.name}/{self.number:08d}"

    @property
    def held_out_split(self) -> str:
        """The split on which models are evaluated: test, or validation if there is no test split."""
        return "test" if self.rows("test") else "validation"

    @property
    def untrained_classes(self) -> list[str]:
        """Classes without training images, by index; no model predicts them."""
        return [name for name in self.classes if not self.counts["train"].get(name)]

    @property
    def groups_in_shards(self) -> bool:
        """Whether the shards have a column of groups: all of them, or none."""
        return self.splitting is not None and self.splitting.groups_in_shards

    def has_indices_of(self, other: Dataset) -> bool:
        """Whether an index is the same class in both versions, whatever its name."""
        return self.name == other.name and self.indices_from == other.indices_from

    def rows(self, split: str) -> int:
        """Number of images in a split; 0 if there is no such split."""
        return sum(shard.rows for shard in self.shards_of(split))

    def shards_of(self, split: str) -> list[Shard]:
        """Shards of a split, in their stored order."""
        return [shard for shard in self.shards if shard.split == split]


def load_dataset(store: Store, name: str, number: int | None = None) -> Dataset:
    """Load a version of a dataset, the latest unless `number` says which.

    Raises DatasetError if there is no version, ObjectNotFoundError if there is no version with this number,
    CorruptObjectError if it is damaged or of a format that this release does not know.
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
    """Sorted names of the datasets that have versions. It takes one listing."""
    matches = (
        re.fullmatch(layout.entry_pattern(layout.dataset_log), item.name) for item in store.list(f"{layout.DATASETS}/")
    )
    return sorted({match[1] for match in matches if match})


def dataset_log(store: Store, name: str) -> Log:
    """Open the log that holds the versions of a dataset."""
    return Log(store, layout.dataset_log(name))


def parse_dataset(document: dict[str, Any], *, uri: str) -> Dataset:
    """Parse the document of a version. Raises CorruptObjectError if it is not one."""
    try:
        return Dataset.model_validate(document)
    except ValidationError as error:
        raise CorruptObjectError(
            f"A dataset version in {uri} does not read as one of format 1: "
            f"{error.error_count()} fields are missing or not as expected.",
            advice="It may have been written by a newer release: update, or ingest under another dataset.name.",
        ) from error
