"""Predictions as a folder of Parquet parts, written by many processes.

A plan is written first, a part once it is predicted, and `_SUCCESS` last, all of them by put-if-absent. So a job that
was killed is continued by the same command, no part is written twice, and readers of Parquet, who skip names that begin
with `_`, read the folder as one table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from transfer.catalog import layout
from transfer.config import StorageConfig
from transfer.config.paths import path_here
from transfer.errors import AlreadyExistsError, ConfigError, CorruptObjectError, StorageError
from transfer.registry.prediction_file import as_parquet, check_file, failures_in, is_folder
from transfer.storage import as_model, open_store, put_document, read_document


def check_output(output: str, storage: StorageConfig, *, overwrite: bool) -> None:
    """Refuse an output before the job starts. Raises what `check_file` and `PredictionFolder.check` do."""
    if is_folder(output):
        PredictionFolder(output, storage).check(overwrite=overwrite)
    else:
        check_file(output, storage, overwrite=overwrite)


class PredictionPlan(BaseModel):
    """What a folder of predictions has: each field decides what is in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: int
    images: int
    source: str
    """The dataset version, or `images`."""
    listing: str
    """SHA-256 of the names of all images in their order, with their sizes."""
    parts: int
    rows_per_part: int
    """Of a dataset version, a part has at most as many images, all of one shard."""
    top_k: int | None
    embeddings: bool
    max_pixels: int
    max_file_size_bytes: int


class Written(NamedTuple):
    """What a part has."""

    rows: int
    failures: int


class PredictionFolder:
    """A folder of predictions. It holds connections: other processes open it anew, by its `uri`."""

    def __init__(self, output: str, storage: StorageConfig) -> None:
        """`output`: a path or `s3://` address. `storage`: options of a bucket."""
        self.uri = (output if "://" in output else str(path_here(output).absolute())).rstrip("/")
        self._store = open_store(storage.model_copy(update={"uri": self.uri}))

    def check(self, *, overwrite: bool) -> None:
        """Refuse the folder before the job starts, unless it is empty or has predictions that are not complete.

        Raises AlreadyExistsError, ConfigError for `overwrite`, StorageError.
        """
        if overwrite:
            raise ConfigError(
                f"--overwrite replaces one file, and --output {self.uri} is a folder, of which nothing is removed.",
                advice="Give another folder, or remove this one first.",
            )
        if self._store.exists(layout.predictions_end()):
            raise AlreadyExistsError(f"The predictions in {self.uri} are complete.", advice="Give another --output.")
        if not self._store.exists(layout.predictions_plan()):
            other = next(iter(self._store.list()), None)
            if other is not None:
                raise AlreadyExistsError(
                    f"The folder {self.uri} has other files, such as {other.name}.", advice="Give an empty folder."
                )

    def begin(self, plan: PredictionPlan) -> None:
        """Write the plan, or find that the same one was begun. Raises AlreadyExistsError for another one."""
        try:
            put_document(self._store, layout.predictions_plan(), plan.model_dump(mode="json"))
        except AlreadyExistsError:
            document = read_document(self._store, layout.predictions_plan())
            found = as_model(PredictionPlan, document, uri=self.uri).model_dump()
            asked = plan.model_dump()
            others = [
                f"{name} {found[name]} (asked for: {asked[name]})" for name in asked if asked[name] != found[name]
            ]
            raise AlreadyExistsError(
                f"The folder {self.uri} has predictions that were begun otherwise: {', '.join(others)}.",
                advice="Repeat the command that began them, with the same images, or give another --output.",
            ) from None

    def written(self, part: str, *, rows: int) -> Written | None:
        """What the part of this name has; None if it is not written yet.

        Raises CorruptObjectError if it is no part of `rows` rows.
        """
        if not self._store.exists(part):
            return None
        try:
            with self._store.open(part) as file:
                table = pq.read_table(file, columns=["error"])
        except pa.ArrowException as error:
            raise self._damaged(part, str(error)) from error
        if len(table) != rows:
            raise self._damaged(part, f"it has {len(table)} rows; expected {rows}")
        return Written(rows, failures_in(table))

    def write(self, part: str, table: pa.Table) -> Written:
        """Write the part of this name.

        If another process was first, its predictions stay, which differ by rounding at most.
        """
        try:
            self._store.put(part, as_parquet(table))
        except AlreadyExistsError:
            found = self.written(part, rows=len(table))
            if found is None:
                raise
            return found
        return Written(len(table), failures_in(table))

    def end(self, plan: PredictionPlan, *, failures: int) -> None:
        """Mark the folder as complete. Raises StorageError if this process does not see all parts."""
        seen = {item.name for item in self._store.list("part-")}
        names = (layout.predictions_part(part, plan.parts) for part in range(plan.parts))
        missing = [name for name in names if name not in seen]
        if missing:
            raise StorageError(
                f"The folder {self.uri} lacks {len(missing):,} of {plan.parts:,} parts as this machine sees it, "
                f"such as {missing[0]}.",
                advice="Give a folder that all machines of the cluster have mounted, or a bucket.",
            )
        counts: dict[str, Any] = {"images": plan.images, "failed": failures, "parts": plan.parts}
        put_document(self._store, layout.predictions_end(), counts)

    def _damaged(self, name: str, found: str) -> CorruptObjectError:
        return CorruptObjectError(
            f"{name} in {self.uri} is no part of these predictions: {found.rstrip('.')}.",
            advice="Remove it, and repeat the command.",
        )
