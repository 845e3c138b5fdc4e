"""Checkpoints: everything that training needs to go on exactly where it was.

A checkpoint is an entry in the run's log, naming two immutable files of arrays by their SHA-256: the weights that the
run trains, and the state of the phase's optimiser (which holds the place in the schedule). The frozen part is not
stored: it is rebuilt from the pretrained weights.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.errors import CorruptObjectError, ObjectNotFoundError, TrainingError
from transfer.storage import Store, put_content
from transfer.training.history import EpochRow
from transfer.training.run import Run

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
_NUMBER = "checkpoint"


class Progress(BaseModel):
    """How far a run has come: the next thing to do is step `step` of epoch `epoch` of phase `phase`."""

    model_config = ConfigDict(frozen=True)

    phase: int = 0
    epoch: int = 0
    """Within the phase."""
    step: int = 0
    """Within the epoch."""
    global_step: int = 0
    """Over the whole run; keys the random numbers."""
    sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Loss, correct answers and images of the epoch so far."""
    best_score: float | None = None
    """Validation metric of the phase's best epoch, higher is better."""
    best_checkpoint: int | None = None
    epochs_since_best: int = 0
    history: tuple[EpochRow, ...] = ()
    complete: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back from storage and verified."""

    number: int
    progress: Progress
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]


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

        Raises AlreadyExistsError when another process is writing the same run.
        """
        document = {
            "progress": progress.model_dump(mode="json"),
            "weights": put_arrays(self._run.store, self._run.prefix, weights, number=number),
            "optimizer": put_arrays(self._run.store, self._run.prefix, optimizer, number=number),
        }
        self._log.append(document, number=number)

    def numbers(self) -> list[int]:
        """Numbers of all checkpoints, ascending."""
        return self._log.numbers()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose bytes are all intact, or None. Damaged ones are logged and passed over."""
        return newest_intact(self.read, self.numbers(), of=f"run {self._run.id}")

    def read(self, number: int) -> Checkpoint:
        """Read one checkpoint. Raises CorruptObjectError when its bytes are not what their digests promise."""
        document = self._log.read(number)
        return Checkpoint(
            number=number,
            progress=Progress.model_validate(document["progress"]),
            weights=read_arrays(self._run.store, self._run.prefix, document["weights"]),
            optimizer=read_arrays(self._run.store, self._run.prefix, document["optimizer"]),
        )

    def complete(self) -> Checkpoint:
        """The last checkpoint of a finished run. Raises TrainingError when the run is not finished."""
        checkpoint = self.newest()
        if checkpoint is None or not checkpoint.progress.complete:
            raise TrainingError(
                f"Run `{self._run.id}` is not finished.",
                advice="Run `transfer train` with its configuration to continue.",
            )
        return checkpoint


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
    return put_content(store, f"{folder}/arrays", ".npz", buffer.getvalue())[1]


def read_arrays(store: Store, folder: str, digest: str) -> list[np.ndarray]:
    """Arrays that `put_arrays` put there. Raises CorruptObjectError, ObjectNotFoundError, StorageError."""
    data = store.read_verified(f"{folder}/arrays/{digest}.npz", digest)
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
