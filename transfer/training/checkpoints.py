"""Checkpoints: everything that a run needs to continue exactly where it stopped. Needs no TensorFlow.

A finished run keeps two. The last checkpoint holds the learned weights: evaluation, publishing and warm starts read
nothing else. The one of the last phase's best epoch is a reserve, from which training continues if the last one is
damaged. All others are removed: first their JSON, then the arrays that no remaining checkpoint names. An interrupted
removal leaves a complete run, and the next removal removes the rest.

A checkpoint is an entry in the run's log, naming two immutable files of arrays by their SHA-256: the weights that the
run trains, and the state of the phase's optimiser (which holds the place in the schedule). The frozen part is not
stored: it is rebuilt from the pretrained weights.
"""

from __future__ import annotations

import io
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from transfer.catalog import layout
from transfer.catalog.run import CheckpointEntry, EpochRow, Progress, Writer
from transfer.config import PhaseConfig
from transfer.errors import (
    AlreadyExistsError,
    CorruptObjectError,
    ObjectNotFoundError,
    RunBusyError,
    StorageError,
    TrainingError,
)
from transfer.storage import PARALLEL, Log, Store, StoredObject, now_utc, put_content, remove_in_steps
from transfer.training.history import final_row
from transfer.training.run import Run

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)


def keep_best_and_last(run: Run) -> None:
    """Remove all checkpoints of a finished run but the best and the last. An unfinished run does not change.

    Only one process may call this, after all workers have left. If storage refuses, the checkpoints stay, and a warning
    is logged.
    """
    try:
        others = superfluous(run.store, run.folder, run.config.phases)
        remove_all(run.store, [item.name for item in others])
    except StorageError as error:
        logger.warning("Older checkpoints of run %s were not removed: %s", run.id, error)


def superfluous(store: Store, folder: str, phases: Sequence[PhaseConfig]) -> list[StoredObject]:
    """The objects that a finished run in `folder` no longer needs, in the order of removal; none of an unfinished run.

    Raises StorageError, and CorruptObjectError if the last checkpoint cannot be read.
    """
    checkpoints = Log(store, layout.checkpoints_log(folder))
    numbers = checkpoints.numbers()
    if not numbers:
        return []
    last = checkpoints.read_as(CheckpointEntry, numbers[-1])
    if not last.progress.complete:
        return []
    kept = {numbers[-1]: last}
    if len(numbers) > 1:
        entries = _readable(checkpoints, numbers[:-1])
        kept |= {number: entries[number] for number in _best(last.progress.history, entries, phases)}
    return _others(store, folder, kept, {sha256 for each in kept.values() for sha256 in (each.weights, each.optimizer)})


def keep_last(store: Store, folder: str) -> None:
    """Remove all but the last checkpoint of a pack without live trials. If storage refuses, a warning is logged."""
    log = Log(store, layout.checkpoints_log(folder))
    try:
        latest = log.latest()
        if latest is not None:
            number, document = latest
            remove_all(store, [item.name for item in _others(store, folder, {number}, {document["arrays"]})])
    except StorageError as error:
        logger.warning("Older checkpoints of pack %s were not removed: %s", folder, error)


def remove_all(store: Store, names: Iterable[str]) -> None:
    """Remove objects, documents before what they name. Raises StorageError."""
    wanted = list(names)
    documents = [name for name in wanted if name.endswith(".json")]
    rest = [name for name in wanted if not name.endswith(".json")]
    remove_in_steps(store, (documents, rest))


def _others(store: Store, folder: str, kept: Iterable[int], arrays: Iterable[str]) -> list[StoredObject]:
    """All checkpoints in `folder` but those numbered `kept`, then all files of arrays but those with these digests."""
    log, files = layout.checkpoints_log(folder), layout.arrays_folder(folder)
    stay = {layout.entry(log, number) for number in kept}
    stay |= {layout.arrays(folder, sha256) for sha256 in arrays}
    found = [item for place in (log, files) for item in store.list(f"{place}/")]
    return [item for item in found if item.name not in stay]


def _readable(log: Log, numbers: Sequence[int]) -> dict[int, CheckpointEntry]:
    """The checkpoints' entries, without damaged ones and those that another process removed in the meantime."""

    def read(number: int) -> CheckpointEntry | None:
        try:
            return log.read_as(CheckpointEntry, number)
        except (CorruptObjectError, ObjectNotFoundError):
            return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        found = zip(numbers, pool.map(read, numbers), strict=True)
        return {number: entry for number, entry in found if entry is not None}


def _best(
    history: Sequence[EpochRow], entries: Mapping[int, CheckpointEntry], phases: Sequence[PhaseConfig]
) -> list[int]:
    """The checkpoint at the end of the last phase's best epoch; none if `entries` has no checkpoint of that epoch."""
    rows = [row for row in history if row.phase == len(phases) - 1 and row.validation_accuracy is not None]
    if not rows:
        return []
    if phases[-1].early_stopping:
        best = final_row(rows, phases)
    else:
        best = max(rows, key=lambda row: (row.validation_accuracy or 0.0, -row.epoch))
    ends = [
        number
        for number, entry in entries.items()
        if not entry.progress.step and len(entry.progress.history) == best.epoch + 1
    ]
    # An epoch that was trained again, because its checkpoint was damaged, has two. The later one is in the history.
    return ends[-1:]


Found = TypeVar("Found")
_NUMBER = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run: a checkpoint that was read and verified, or a state in memory, whose number is 0."""

    progress: Progress
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    """State of the phase's optimiser; empty for a fresh one."""
    number: int = 0


class Checkpoints:
    """Writes and reads the checkpoints of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._log = run.checkpoints

    def save(
        self,
        number: int,
        progress: Progress,
        *,
        weights: Sequence[keras.Variable | np.ndarray],
        optimizer: Sequence[keras.Variable | np.ndarray],
    ) -> None:
        """Write checkpoint `number`. Only the chief (rank 0) calls this.

        Raises RunBusyError if another process, which trains the same run, wrote this checkpoint or a later one.
        """
        self.check_newest(number)
        entry = CheckpointEntry(
            progress=progress,
            weights=put_arrays(self._run.store, self._run.folder, weights, number=number),
            optimizer=put_arrays(self._run.store, self._run.folder, optimizer, number=number),
            written=Writer(host=socket.gethostname(), process=os.getpid(), at=now_utc()),
        )
        try:
            self._log.append(entry.model_dump(mode="json"), number=number)
        except AlreadyExistsError:
            found = self.entry(number)
            # The same content is no conflict: it came from an attempt that was killed, whose request arrived late.
            if found.model_copy(update={"written": entry.written}) != entry:
                raise self._busy(number, found.written) from None

    def numbers(self) -> list[int]:
        """Numbers of all checkpoints, ascending."""
        return self._log.numbers()

    def check_newest(self, number: int) -> None:
        """Raise RunBusyError if there is a later checkpoint than `number`, which this process is about to write.

        Put-if-absent alone would not notice that: a run that ends removes older checkpoints, so `number` may be free.
        """
        newest = self._log.newest_number()
        if newest > number:
            raise self._busy(newest, self.entry(newest).written)

    def entry(self, number: int) -> CheckpointEntry:
        """The document of a checkpoint, without its arrays. Raises what `Log.read_as` raises."""
        return self._log.read_as(CheckpointEntry, number)

    def last_entry(self) -> tuple[int, CheckpointEntry] | None:
        """Number and document of the last checkpoint; None before the first one. Raises what `Log.latest_as` raises."""
        return self._log.latest_as(CheckpointEntry)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are intact, or None. Damaged ones are logged and skipped."""
        return newest_intact(self.read, self.numbers(), of=f"run {self._run.id}")

    def read(self, number: int) -> Checkpoint:
        """Read one checkpoint. Raises CorruptObjectError if its bytes do not have their digests."""
        entry = self.entry(number)
        return Checkpoint(
            number=number,
            progress=entry.progress,
            weights=read_arrays(self._run.store, self._run.folder, entry.weights),
            optimizer=read_arrays(self._run.store, self._run.folder, entry.optimizer),
        )

    def _busy(self, number: int, written: Writer | None) -> RunBusyError:
        # Checkpoints of earlier releases do not name their writer.
        which = f" (process {written.process} on {written.host}, at {written.at})" if written else ""
        return RunBusyError(
            f"Another process trains run `{self._run.id}`, too: it wrote checkpoint {number}{which}.",
            advice="Let that process finish the run. Then the same command finds the result; if the process was "
            "interrupted, the command continues the run.",
        )

    def complete(self) -> Checkpoint:
        """The last checkpoint of a finished run. Raises TrainingError if the run is not finished."""
        checkpoint = self.newest()
        if checkpoint is None or not checkpoint.progress.complete:
            raise self._unfinished()
        return checkpoint

    def finished(self) -> CheckpointEntry:
        """What the last checkpoint's document of a finished run says. Raises TrainingError like `complete`."""
        latest = self.last_entry()
        if latest is None or not latest[1].progress.complete:
            raise self._unfinished()
        return latest[1]

    def _unfinished(self) -> TrainingError:
        return TrainingError(
            f"Run `{self._run.id}` is not finished.",
            advice="Run `transfer train` with its configuration to continue.",
        )


def newest_intact(read: Callable[[int], Found], numbers: Sequence[int], *, of: str) -> Found | None:
    """The result of `read` for the last of these checkpoint numbers with intact bytes; None if there is none."""
    for number in reversed(numbers):
        try:
            return read(number)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            logger.warning("Checkpoint %d of %s is damaged: %s Using the one before.", number, of, error)
    return None


def put_arrays(store: Store, folder: str, arrays: Sequence[np.ndarray | keras.Variable], *, number: int) -> str:
    """Put arrays of checkpoint `number` into one immutable file below `folder`. Returns its SHA-256.

    The file holds the number, so that no two checkpoints share a file. If they did and the file were damaged, training
    from the checkpoint before would compute the same arrays again, and their name would be taken. Raises StorageError.
    """
    buffer = io.BytesIO()
    # Names are positions: Keras's own names of variables depend on what the process built before.
    named: dict[str, Any] = {f"{index:05d}": np.asarray(array) for index, array in enumerate(arrays)}
    named[_NUMBER] = np.int64(number)
    np.savez(buffer, **named)
    return put_content(store, partial(layout.arrays, folder), buffer.getvalue())[1]


def read_arrays(store: Store, folder: str, digest: str) -> list[np.ndarray]:
    """Read the arrays that `put_arrays` wrote. Raises CorruptObjectError, ObjectNotFoundError, StorageError."""
    data = store.read_verified(layout.arrays(folder, digest), digest)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [arrays[name] for name in sorted(arrays.files) if name != _NUMBER]


def assign(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Put arrays into variables of the same order and shapes. Raises TrainingError if they do not fit."""
    shapes = [tuple(variable.shape) for variable in variables]
    found = [array.shape for array in arrays]
    if shapes != found:
        raise TrainingError(
            f"The checkpoint holds {len(found)} arrays that do not fit the network's {len(shapes)} variables.",
            advice="The base network or the library changed since the run started; start a new run.",
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
