"""Checkpoints: everything that training needs to go on exactly where it was.

The last one holds what the run learned: evaluation, publishing and warm starts need nothing else. The best epoch of the
last phase is where training would go on from if the last one were damaged. All others go, their JSON first, then the
arrays that no checkpoint names any more. So a removal that was cut short leaves a run that is whole, and the next one
removes the rest. Needs no TensorFlow.

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
    """Remove the other checkpoints of a run that is finished; nothing happens to one that is not.

    To be called by one process, when nobody trains the run any more. Where storage refuses, they stay, with a warning.
    """
    try:
        others = superfluous(run.store, run.folder, run.config.phases)
        remove_all(run.store, [item.name for item in others])
    except StorageError as error:
        logger.warning("Older checkpoints of run %s stay: %s", run.id, error)


def superfluous(store: Store, folder: str, phases: Sequence[PhaseConfig]) -> list[StoredObject]:
    """What a finished run in `folder` does not keep, in the order in which it may go; nothing of one not finished.

    Raises StorageError, CorruptObjectError where the last checkpoint cannot be read.
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
    """Remove all but the last checkpoint of a pack in `folder` that has no trial to train. Warns as above."""
    log = Log(store, layout.checkpoints_log(folder))
    try:
        latest = log.latest()
        if latest is not None:
            number, document = latest
            remove_all(store, [item.name for item in _others(store, folder, {number}, {document["arrays"]})])
    except StorageError as error:
        logger.warning("Older checkpoints of pack %s stay: %s", folder, error)


def remove_all(store: Store, names: Iterable[str]) -> None:
    """Remove objects, documents before what they name. Raises StorageError."""
    wanted = list(names)
    documents = [name for name in wanted if name.endswith(".json")]
    rest = [name for name in wanted if not name.endswith(".json")]
    remove_in_steps(store, (documents, rest))


def _others(store: Store, folder: str, kept: Iterable[int], arrays: Iterable[str]) -> list[StoredObject]:
    """Checkpoints in `folder` besides those that are kept, then files besides the `arrays` that these name."""
    log, files = layout.checkpoints_log(folder), layout.arrays_folder(folder)
    stay = {layout.entry(log, number) for number in kept}
    stay |= {layout.arrays(folder, sha256) for sha256 in arrays}
    found = [item for place in (log, files) for item in store.list(f"{place}/")]
    return [item for item in found if item.name not in stay]


def _readable(log: Log, numbers: Sequence[int]) -> dict[int, CheckpointEntry]:
    """The checkpoints' entries; those that are damaged, or removed by another process meanwhile, are left out."""

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
    """The checkpoint at the end of the last phase's best epoch; none where the last checkpoint is of that epoch."""
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
    # Where a part was trained again, the later one is that of the run's history.
    return ends[-1:]


Found = TypeVar("Found")
_NUMBER = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: a checkpoint that was read back and verified, or in memory, with number 0."""

    progress: Progress
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]
    """Empty: a fresh optimiser."""
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

        Raises RunBusyError when another process, which trains the same run, wrote it, or has come further.
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
            # The same, where a request of an attempt that was killed came late.
            if found.model_copy(update={"written": entry.written}) != entry:
                raise self._busy(number, found.written) from None

    def numbers(self) -> list[int]:
        """Numbers of all checkpoints, ascending."""
        return self._log.numbers()

    def check_newest(self, number: int) -> None:
        """Raise RunBusyError when there is a checkpoint beyond `number`, which this process is about to write.

        A run that came to its end removes older checkpoints, so `number` may be free again.
        """
        newest = max(self.numbers(), default=0)
        if newest > number:
            raise self._busy(newest, self.entry(newest).written)

    def entry(self, number: int) -> CheckpointEntry:
        """What a checkpoint's document says, without its arrays. Raises what `Log.read_as` raises."""
        return self._log.read_as(CheckpointEntry, number)

    def last_entry(self) -> tuple[int, CheckpointEntry] | None:
        """The number of the last checkpoint and what its document says; None before the first one. Raises as above."""
        return self._log.latest_as(CheckpointEntry)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are all intact, or None. Damaged ones are logged and passed over."""
        return newest_intact(self.read, self.numbers(), of=f"run {self._run.id}")

    def read(self, number: int) -> Checkpoint:
        """Read one checkpoint. Raises CorruptObjectError when its bytes are not what their digests promise."""
        entry = self.entry(number)
        return Checkpoint(
            number=number,
            progress=entry.progress,
            weights=read_arrays(self._run.store, self._run.folder, entry.weights),
            optimizer=read_arrays(self._run.store, self._run.folder, entry.optimizer),
        )

    def _busy(self, number: int, written: Writer | None) -> RunBusyError:
        # Earlier releases did not write down who it was.
        who = f"process {written.process} on {written.host} at {written.at}" if written else "it"
        return RunBusyError(
            f"Another process trains run `{self._run.id}`, too: checkpoint {number} was written by {who}.",
            advice="Leave the run to that process. The same command finds its result later, or goes on with it.",
        )

    def complete(self) -> Checkpoint:
        """The last checkpoint of a finished run. Raises TrainingError when the run is not finished."""
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
    """What `read` gives for the last of these checkpoint numbers whose bytes are intact; None where none is."""
    for number in reversed(numbers):
        try:
            return read(number)
        except (CorruptObjectError, ObjectNotFoundError) as error:
            logger.warning("Checkpoint %d of %s is damaged: %s Using the one before.", number, of, error)
    return None


def put_arrays(store: Store, folder: str, arrays: Sequence[np.ndarray | keras.Variable], *, number: int) -> str:
    """Put arrays of checkpoint `number` into one immutable file below `folder`. Returns its SHA-256.

    The number is in the file, so that no other checkpoint has the same one: were it damaged, training that goes on from
    the checkpoint before would come to the same arrays again, and find their name taken. Raises StorageError.
    """
    buffer = io.BytesIO()
    # Named by position: Keras's own variable names count what was built before in the same process.
    named: dict[str, Any] = {f"{index:05d}": np.asarray(array) for index, array in enumerate(arrays)}
    named[_NUMBER] = np.int64(number)
    np.savez(buffer, **named)
    return put_content(store, partial(layout.arrays, folder), buffer.getvalue())[1]


def read_arrays(store: Store, folder: str, digest: str) -> list[np.ndarray]:
    """Arrays that `put_arrays` put there. Raises CorruptObjectError, ObjectNotFoundError, StorageError."""
    data = store.read_verified(layout.arrays(folder, digest), digest)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return [arrays[name] for name in sorted(arrays.files) if name != _NUMBER]


def assign(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Put arrays into variables of the same order and shapes. Raises TrainingError when they do not fit."""
    shapes = [tuple(variable.shape) for variable in variables]
    found = [array.shape for array in arrays]
    if shapes != found:
        raise TrainingError(
            f"The checkpoint holds {len(found)} arrays that do not fit the network's {len(shapes)} variables.",
            advice="The base network or the library changed since the run started; start a new run.",
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
