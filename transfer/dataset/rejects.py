"""What was refused or left out, and why. Nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from transfer.errors import DatasetError
from transfer.storage import Store, put_content

IGNORED = "ignored"
NO_CLASS_FOLDER = "no_class_folder"
MISSING = "missing"
UNREADABLE = "unreadable"
NO_LABEL = "no_label"
NO_PATH = "no_path"
DUPLICATE = "duplicate"
CONFLICTING_LABELS = "conflicting_labels"

# Not mistakes of the kind that `max_reject_share` is there to notice.
NOT_COUNTED = frozenset({IGNORED, DUPLICATE})
SHOWN = 5

LEDGER_SCHEMA = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class Reject(NamedTuple):
    """One line of the ledger."""

    key: str
    reason: str
    detail: str


def write_ledger(store: Store, rejects: Sequence[Reject]) -> str | None:
    """Put the ledger, sorted, as `rejects/<sha256>.parquet` and return its name; None when there is nothing in it."""
    if not rejects:
        return None
    columns = [pa.array(column, pa.string()) for column in zip(*sorted(rejects), strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=LEDGER_SCHEMA), sink, compression="zstd")
    name, _ = put_content(store, "rejects", ".parquet", sink.getvalue().to_pybytes())
    return name


def read_ledger(store: Store, name: str) -> pa.Table:
    """Read a ledger, verified by the digest in its name: columns `key`, `reason`, `detail`.

    Raises CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    sha256 = name.removeprefix("rejects/").removesuffix(".parquet")
    return pq.read_table(pa.BufferReader(store.read_verified(name, sha256)))


def count_rejects(rejects: Sequence[Reject]) -> dict[str, int]:
    """Count the lines of each reason."""
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def check_reject_share(rejects: Sequence[Reject], *, accepted: int, max_share: float, ledger: str | None) -> None:
    """Raise DatasetError, naming the first rejects and the ledger, when a larger share than `max_share` is refused.

    The share is refused / (refused + accepted); copies and ignored files count on neither side.
    """
    refused = sorted(reject for reject in rejects if reject.reason not in NOT_COUNTED)
    share = len(refused) / max(len(refused) + accepted, 1)
    if share <= max_share:
        return
    shown = "; ".join(f"{reject.key} ({reject.reason}: {reject.detail})" for reject in refused[:SHOWN])
    more = f"; and {len(refused) - SHOWN:,} more" if len(refused) > SHOWN else ""
    raise DatasetError(
        f"{len(refused):,} of {len(refused) + accepted:,} images were refused ({share:.2%}), and "
        f"dataset.max_reject_share is {max_share:.2%}: {shown}{more}. All of them are in {ledger}.",
        advice="Mend or remove these files, or raise dataset.max_reject_share to go on without them.",
    )
