"""How what is kept lies in storage. Reading names and documents needs no TensorFlow.

activations/<prefix digest>/prefix.json               what it is, for people
activations/<prefix digest>/<content sha256>.arrow    outputs and labels, row for row those of an image shard
activations/<prefix digest>/<image shard sha256>.json written last: which content belongs to that image shard

The content has its own digest for a name, so that every byte is verified before use. Two workers may compute the same
shard with different rounding: the first one's entry counts, the other's content is an orphan that `gc` finds. Two image
shards with the same pixels and labels under other keys have the same content.

The content is an Arrow IPC file, uncompressed, whose record batches all have the same number of rows but the last one:
a memory map gives any row without reading the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from transfer.errors import CorruptObjectError
from transfer.storage import Store, read_document

ROOT = "activations"
DESCRIPTION = "prefix.json"


class Entry(BaseModel):
    """The document that says which content belongs to an image shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    """Of the content."""
    rows: int
    size_bytes: int


def folder_of(prefix: str) -> str:
    """Where everything of a prefix lies. `prefix` is its digest."""
    return f"{ROOT}/{prefix}"


def description_name(prefix: str) -> str:
    """Name of the document that describes a prefix for people."""
    return f"{folder_of(prefix)}/{DESCRIPTION}"


def entry_name(prefix: str, shard: str) -> str:
    """Name of the entry for an image shard. Both are digests."""
    return f"{folder_of(prefix)}/{shard}.json"


def content_name(prefix: str, sha256: str) -> str:
    """Name of a content. Both are digests."""
    return f"{folder_of(prefix)}/{sha256}.arrow"


def read_entry(store: Store, prefix: str, shard: str) -> Entry:
    """The entry for an image shard. Raises ObjectNotFoundError, CorruptObjectError when it does not read as one."""
    name = entry_name(prefix, shard)
    try:
        return Entry.model_validate(read_document(store, name))
    except ValidationError as error:
        raise CorruptObjectError(
            f"{name} in {store.uri} does not read as an entry of kept activations: it is of another format.",
            advice="Run `transfer cache verify --remove`; it is computed again.",
        ) from error


def schema_for(shape: Sequence[int], dtype: str) -> pa.Schema:
    """Arrow schema of kept rows; the shape of a row stands in its metadata."""
    values = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), prod(shape))
    return pa.schema(
        [("activation", values), ("label", pa.int32())], metadata={"shape": " ".join(str(side) for side in shape)}
    )
