"""Dataset versions: which shards, which classes, and where they came from.

Version 3 of the dataset `flowers` is the document `datasets/flowers/00000003.json`. It is written last, when everything
it names is in storage, and never changes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from transfer.errors import CorruptObjectError, DatasetError
from transfer.storage import Log, Store
from transfer.storage.log import Number


class Shard(BaseModel):
    """One Parquet object of images, all of the same split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Its name in storage, `shards/<sha256>.parquet`."""
    sha256: str
    split: str
    rows: int
    size_bytes: int
    """Size of the object; the images are stored uncompressed, so their bytes are nearly all of it."""


class Dataset(BaseModel):
    """An immutable version of a dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    name: str
    number: Number
    parent: Number | None
    """The version this one was derived from, whose class indices and unchanged shards it keeps."""
    label_kind: Literal["class"] = "class"
    """Each image has exactly one class."""
    classes: list[str]
    """A class's index is its place here. Later versions only append."""
    shards: list[Shard]
    counts: dict[str, dict[str, int]]
    """Images of each split and class: `counts["train"]["daisy"]`."""
    rejects: str | None
    """Name of the ledger of everything that was refused or left out; None when there was nothing."""
    reject_counts: dict[str, int]
    """Ledger rows by reason."""
    source: dict[str, Any]

    @property
    def reference(self) -> str:
        """How a version is named for people: `flowers/00000003`."""
        return f"{self.name}/{self.number:08d}"

    @property
    def held_out_split(self) -> str:
        """The split that models are judged on: test, or validation where there is no test split."""
        return "test" if self.rows("test") else "validation"

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


def dataset_log(store: Store, name: str) -> Log:
    """Open the log that holds the versions of a dataset."""
    return Log(store, f"datasets/{name}")


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
