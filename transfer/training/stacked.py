"""Trials that train nothing but their heads, trained side by side: to each its own run, as if it had been alone.

Which trials fit together `tuning/packs.py` decides, from their configurations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transfer.activations.batches import CHUNK_SIZE_BYTES, KeptBatches, KeptSplit
from transfer.dataset.manifest import Dataset
from transfer.dataset.order import steps_per_epoch
from transfer.errors import DivergedError
from transfer.memory import for_training, memory_explained
from transfer.training.balance import class_weights
from transfer.training.checkpoints import Progress
from transfer.training.head import build_head
from transfer.training.history import EpochRow
from transfer.training.inputs import KeptInputs
from transfer.training.members import Member, PackCheckpoints, Stand, finished
from transfer.training.run import Run
from transfer.training.samples import MAX_STEPS
from transfer.training.stacked_head import HeadState, StackedHeads
from transfer.training.step import Totals
from transfer.training.warm_start import warm_start

logger = logging.getLogger(__name__)

THREADS = 8
"""That read and write what belongs to single runs: in a bucket each object takes a round trip."""


class Pack:
    """Trials of one dataset version with the same `pack_key`, trained an epoch at a time.

    After each epoch the whole pack is one checkpoint in `folder`, from which it goes on when it is made again with the
    same runs or some of them. A run itself is written to once: when its trial ends, fails, or is stopped.
    """

    def __init__(self, runs: Sequence[Run], dataset: Dataset, kept: KeptInputs, *, folder: str) -> None:
        """`kept`: of the frozen part that all runs have in common. `folder`: in the store, the pack's own."""
        self._dataset = dataset
        self._kept = kept
        self._common = runs[0].config
        self._steps = steps_per_epoch(len(kept.train[0]), self._common.training.batch_size)
        self._checkpoints = PackCheckpoints(runs[0].store, folder)
        restored = self._checkpoints.restore(runs)
        members = restored or self._fresh(runs)
        self._members = {member.run.id: member for member in members}
        self._stacked: list[Member] = []
        self._heads: StackedHeads | None = None
        if restored and self.live:
            logger.info("A pack of %d trials goes on after epoch %d.", len(self.live), self._progress().epoch)

    @property
    def live(self) -> list[str]:
        """Ids of the runs that have an epoch to come."""
        return [run_id for run_id, member in self._members.items() if member.is_live]

    @property
    def histories(self) -> dict[str, tuple[EpochRow, ...]]:
        """Every run's epochs so far, those of an earlier attempt included."""
        return {run_id: member.now.progress.history for run_id, member in self._members.items()}

    @property
    def failures(self) -> dict[str, DivergedError]:
        """What ended the runs that failed."""
        return {run_id: member.failure for run_id, member in self._members.items() if member.failure}

    def has(self, run_id: str) -> bool:
        """Whether a run is trained here or came to its end here; one that left before goes on alone."""
        member = self._members.get(run_id)
        return member is not None and (member.is_live or member.has_ended)

    def next_epoch(self) -> dict[str, EpochRow]:
        """Train and validate all live trials for one epoch, and write a checkpoint.

        Returns the rows of those whose loss is finite; `failures` has the others. Raises ConfigError when early
        stopping has nothing to watch, AlreadyExistsError when another process trains the same pack,
        OutOfMemoryError.
        """
        if not self.live:
            return {}
        with memory_explained(f"A pack of {len(self.live)} trials", advice=for_training(self._common)):
            return self._next_epoch()

    def _next_epoch(self) -> dict[str, EpochRow]:
        heads = self._heads_of_live()
        started = time.monotonic()
        progress = self._progress()
        trained, validated = self._train(heads, progress), self._validate(heads)
        seconds = time.monotonic() - started
        rows = {}
        figures = zip(self._stacked, trained, validated, heads.learning_rates(), heads.states(), strict=True)
        for member, of_training, of_validation, learning_rate, state in figures:
            if member.is_live:
                row = member.advance(
                    of_training,
                    of_validation,
                    steps=self._steps,
                    learning_rate=learning_rate,
                    seconds=seconds,
                    state=state,
                )
                if row:
                    rows[member.run.id] = row
        self._leave([member for member in self._stacked if member.is_live and member.has_ended])
        self._checkpoints.save(list(self._members.values()))
        return {run_id: rows[run_id] for run_id in self._members if run_id in rows}

    def stop(self, run_id: str) -> None:
        """Train a trial no further; its run can go on alone from where it stands."""
        member = self._members[run_id]
        if member.is_live:
            member.leave()

    def give_up(self) -> None:
        """Train no trial any further, now or when the pack is made again; their runs can go on alone."""
        live = [self._members[run_id] for run_id in self.live]
        if live:
            logger.warning("A pack of %d trials is given up: each of them goes on alone.", len(live))
        self._leave(live)
        self._stacked, self._heads = [], None
        self._checkpoints.save(list(self._members.values()))

    def _fresh(self, runs: Sequence[Run]) -> list[Member]:
        """Members at the start of their phase; runs that were finished before, by whomever, are so here."""
        with ThreadPoolExecutor(THREADS) as pool:
            done = list(pool.map(finished, runs))
        first = {run.config.training.seed: run for run, member in zip(runs, done, strict=True) if member is None}
        states = {seed: self._first_state(run) for seed, run in first.items()}
        return [
            member or Member(run, Stand(Progress(), states[run.config.training.seed]))
            for run, member in zip(runs, done, strict=True)
        ]

    def _leave(self, members: Sequence[Member]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(Member.leave, members))

    def _first_state(self, run: Run) -> HeadState:
        """The first weights that the run's seed, or a published version, decides."""
        head = build_head(
            run.config.head,
            feature_shape=self._kept.train[0].shape,
            class_count=len(self._dataset.classes),
            seed=run.config.training.seed,
        )
        warm_start(head, run, self._dataset)
        return HeadState([np.array(variable) for variable in head.trainable_variables], [])

    def _progress(self) -> Progress:
        """How far the live members have come: all of them equally."""
        return self._members[self.live[0]].now.progress

    def _heads_of_live(self) -> StackedHeads:
        """The program, made anew when most of what it trains is dead weight: that takes as long as some epochs."""
        live = [member for member in self._members.values() if member.is_live]
        if self._heads is None or 2 * len(live) < len(self._stacked):
            self._stacked = sorted(live, key=lambda member: _reads(member.run))
            self._heads = StackedHeads(
                [member.run.config for member in self._stacked],
                [member.now.state for member in self._stacked],
                class_weights=class_weights(self._common.training.class_weights, self._dataset),
                steps_per_epoch=self._steps,
            )
        return self._heads

    def _train(self, heads: StackedHeads, progress: Progress) -> list[Totals]:
        views = self._kept.train
        view = views[progress.epoch % len(views)]
        streams = [self._batches(view, progress.epoch, seed, of=len(heads.seeds)) for seed in heads.seeds]
        summed, done = np.zeros((len(self._stacked), 3)), 0
        while done < self._steps:
            chunks = [stream.next_chunk(self._steps - done) for stream in streams]
            summed += heads.train_steps(chunks, global_step=progress.global_step + done)
            done += chunks[0].steps
        return [Totals(*totals) for totals in summed.tolist()]

    def _validate(self, heads: StackedHeads) -> list[Totals | None]:
        validation = self._kept.validation
        if validation is None:
            return [None] * len(self._stacked)
        stream = self._batches(validation, 0, None)
        steps = steps_per_epoch(len(validation), self._common.training.batch_size)
        summed, done = np.zeros((len(self._stacked), 3)), 0
        while done < steps:
            chunk = stream.next_chunk(steps - done)
            summed += heads.evaluate_steps(chunk)
            done += chunk.steps
        return [Totals(*totals) for totals in summed.tolist()]

    def _batches(self, split: KeptSplit, epoch: int, seed: int | None, *, of: int = 1) -> KeptBatches:
        """One epoch, in the order that the seed decides. `of` such streams have room for their chunks together."""
        batch_size = self._common.training.batch_size
        room = CHUNK_SIZE_BYTES // (of * batch_size * split.row_bytes)
        return KeptBatches([(epoch, split)], batch_size=batch_size, seed=seed, max_steps=min(max(room, 1), MAX_STEPS))


def _reads(run: Run) -> tuple[int, float]:
    """What decides a trial's inputs: neighbours with the same need no copy of them."""
    return run.config.training.seed, run.config.head.dropout
