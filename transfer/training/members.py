"""The trials of a pack, one by one: where each stands, what it leaves behind, and how all of them are kept together.

<folder>/checkpoints/<n>.json   where every member stands after an epoch of the pack
<folder>/arrays/<sha256>.npz    weights and optimiser state of those that are still trained, in one file
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.errors import DivergedError
from transfer.storage import Log, Store
from transfer.training.checkpoints import Checkpoints, Progress, newest_intact, put_arrays, read_arrays
from transfer.training.epochs import after_epoch, after_phase, checked
from transfer.training.history import EpochRow
from transfer.training.run import Run
from transfer.training.stacked_head import HeadState
from transfer.training.step import Totals
from transfer.training.tensorboard import write_events

_NOTHING = HeadState([], [])


@dataclass(frozen=True)
class Stand:
    """Where a trial stood at the end of an epoch. The state is empty of one that is not trained any more."""

    progress: Progress
    state: HeadState


@dataclass
class Member:
    """One trial of a pack."""

    run: Run
    now: Stand
    best: Stand | None = None
    """Where its phase has early stopping: its best epoch so far."""
    is_live: bool = True
    failure: DivergedError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it is to leave the pack, if it has not yet."""
        return self.failure is not None or self.now.progress.complete

    def advance(
        self,
        trained: Totals,
        validated: Totals | None,
        *,
        steps: int,
        learning_rate: float,
        seconds: float,
        state: HeadState,
    ) -> EpochRow | None:
        """Note the end of an epoch of so many `steps`. Returns its row; None when its loss is not finite."""
        before = self.now.progress
        progress = before.model_copy(update={"step": steps, "global_step": before.global_step + steps})
        try:
            trained = checked(trained, progress)
            validated = validated and checked(validated, progress)
        except DivergedError as error:
            self.failure = error
            return None
        row = EpochRow(
            phase=0,
            epoch=progress.epoch,
            loss=trained.mean_loss,
            accuracy=trained.accuracy,
            validation_loss=validated.mean_loss if validated else None,
            validation_accuracy=validated.accuracy if validated else None,
            learning_rate=learning_rate,
            seconds=seconds,
        )
        # As the run alone would number its checkpoints; `leave` gives those that it writes their numbers.
        number = row.epoch + 1
        progress, ended = after_epoch(progress, row, self.run.config.phases[0], checkpoint=number)
        self.now = Stand(progress, state)
        if progress.best_checkpoint == number:
            self.best = self.now
        if ended:
            weights = (self.best or self.now).state.weights
            self.now, self.best = Stand(after_phase(progress, phases=1), HeadState(weights, [])), None
        return row

    def leave(self) -> None:
        """Be trained no further, and give the run what it would have alone: its result, or what to go on from."""
        self.is_live = False
        newest = self.run.checkpoints.latest()
        # Before it was killed, an earlier attempt may have come as far as this.
        if self.now.progress.history and not (newest and newest[1]["progress"]["complete"]):
            self._write(newest[0] + 1 if newest else 1)
        self.now, self.best = Stand(self.now.progress, _NOTHING), None

    def _write(self, number: int) -> None:
        checkpoints = Checkpoints(self.run)
        stands = [self.now]
        if self.best and self.best.progress.epoch < self.now.progress.epoch:
            stands = [self.best, self.now]
        for place, stand in enumerate(stands):
            best_checkpoint = {"best_checkpoint": number} if self.best else {}
            progress = stand.progress.model_copy(update=best_checkpoint)
            checkpoints.save(number + place, progress, weights=stand.state.weights, optimizer=stand.state.optimizer)
        write_events(self.run, *self.now.progress.history)


def finished(run: Run) -> Member | None:
    """A run that is finished, as a member with nothing left to do; None for one that is not."""
    newest = run.checkpoints.latest()
    if newest is None or not newest[1]["progress"]["complete"]:
        return None
    return Member(run, Stand(Progress.model_validate(newest[1]["progress"]), _NOTHING), is_live=False)


class PackCheckpoints:
    """Writes and reads checkpoints of whole packs."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._log = Log(store, f"{folder}/checkpoints")
        self._next = (self._log.numbers() or [0])[-1] + 1

    def save(self, members: Sequence[Member]) -> None:
        """Write where all members stand. Raises AlreadyExistsError when another process trains the same pack."""
        arrays = _Arrays()
        documents = [
            {
                "run": member.run.id,
                "live": member.is_live,
                "failure": [member.failure.message, member.failure.advice] if member.failure else None,
                "now": _document(member.now, arrays),
                "best": _document(member.best, arrays) if member.best else None,
            }
            for member in members
        ]
        digest = put_arrays(self._store, self._folder, arrays.all, number=self._next)
        self._log.append({"members": documents, "arrays": digest}, number=self._next)
        self._next += 1

    def restore(self, runs: Sequence[Run]) -> list[Member] | None:
        """These runs as they stood when the newest intact checkpoint was written; None where it lacks one of them."""
        found = newest_intact(self._read, self._log.numbers(), of=f"pack {self._folder}")
        if found is None or any(run.id not in found for run in runs):
            return None
        return [_member(run, *found[run.id]) for run in runs]

    def _read(self, number: int) -> dict[str, tuple[dict[str, Any], list[np.ndarray]]]:
        document = self._log.read(number)
        arrays = read_arrays(self._store, self._folder, document["arrays"])
        return {member["run"]: (member, arrays) for member in document["members"]}


class _Arrays:
    """Arrays for one file, each of them once: the best epoch of many members is the present one."""

    def __init__(self) -> None:
        self.all: list[np.ndarray] = []
        self._places: dict[int, int] = {}

    def places(self, arrays: Sequence[np.ndarray]) -> list[int]:
        """Where in the file these arrays are."""
        for array in arrays:
            if id(array) not in self._places:
                self._places[id(array)] = len(self.all)
                self.all.append(array)
        return [self._places[id(array)] for array in arrays]


def _document(stand: Stand, arrays: _Arrays) -> dict[str, Any]:
    return {
        "progress": stand.progress.model_dump(mode="json"),
        "weights": arrays.places(stand.state.weights),
        "optimizer": arrays.places(stand.state.optimizer),
    }


def _stand(document: dict[str, Any], arrays: list[np.ndarray]) -> Stand:
    weights, optimizer = ([arrays[place] for place in document[name]] for name in ("weights", "optimizer"))
    return Stand(Progress.model_validate(document["progress"]), HeadState(weights, optimizer))


def _member(run: Run, document: dict[str, Any], arrays: list[np.ndarray]) -> Member:
    failure = document["failure"]
    return Member(
        run=run,
        now=_stand(document["now"], arrays),
        best=_stand(document["best"], arrays) if document["best"] else None,
        is_live=document["live"],
        failure=DivergedError(failure[0], advice=failure[1]) if failure else None,
    )
