"""Actors that train the trials of a sweep, one after the other in the same process.

An actor keeps TensorFlow, the network, the compiled steps and the cached features from one trial to the next. Trials
with the same key (`pack_key` in `tuning/plan.py`) are trained as one program. An actor imports TensorFlow at its first
call, so the driver, which imports this module, does not need it.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transfer.catalog import layout
from transfer.catalog.run import EpochRow
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import DivergedError, OutOfMemoryError
from transfer.features.layout import Extraction, Request
from transfer.runtime.startup import start_worker
from transfer.training.checkpoints import keep_best_and_last
from transfer.training.rows import Fold
from transfer.training.run import Run, hold_to_base, open_run, run_id_for
from transfer.tuning.plan import comes_to_all_phases, folds_of, pack_key, requests_of_trials
from transfer.tuning.records import Sweep
from transfer.tuning.space import Trial, sweep_of
from transfer.tuning.trial_runner import Branch, Failure, FoldsRunner, TrialRunner, TrialState

if TYPE_CHECKING:
    from transfer.training.loop import Training
    from transfer.training.model import TransferModel
    from transfer.training.pack import Pack
    from transfer.training.shared_models import SharedModels


@dataclass(frozen=True)
class Survey:
    """What the trials need and cost, found before the first one starts."""

    requests: list[Request]
    """The features to cache for all trials together."""
    flops: dict[int, float]
    """By trial: multiply-adds of the trained part for one image, in the phase that trains most."""


class TrialActor:
    """Trains trials, one epoch at each request. `trials`: all trials, if they are known."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial] | None) -> None:
        # Nothing here may fail: an error of a constructor reaches the driver only as text.
        self._sweep = sweep
        self._trials = {trial.number: trial for trial in trials or ()}
        self._packs = Counter(pack_key(trial.config) for trial in self._trials.values())
        self._open: dict[str, TrialRunner] = {}
        self._pack_of: dict[tuple[str, Fold | None], Pack | None] = {}
        self._flops_of: dict[str, float] = {}
        self._run_ids: dict[str, str] = {}

    def ready(self) -> None:
        """Return, which shows that the process has started."""

    def survey(self) -> Survey:
        """The needs and costs of the known trials. Raises BackboneError or ConfigError if one of them cannot run."""
        self._sweep.check_bases(self._dataset)
        requests = requests_of_trials(self._sweep, self._dataset, list(self._trials.values()), model_of=self._model)
        return Survey(requests, {number: self._flops(trial) for number, trial in self._trials.items()})

    def extract(self, requests: Sequence[Request], part: int, of: int) -> Extraction:
        """Compute requested features that are not cached yet, for part number `part` (from 0) of `of` of the images."""
        from transfer.features.extract import Extractor
        from transfer.features.frozen import frozen_parts_of

        config = self._sweep.config
        extractor = Extractor(self._sweep.store, engine=config.features.engine)
        by_split = frozen_parts_of(config, self._model(config).backbone, requests)
        wanted = [(self._dataset.shards_of(split)[part::of], frozen_parts) for split, frozen_parts in by_split.items()]
        return extractor.extract_all(wanted)

    def advance(self, trial: Trial, epochs: int, branch: Branch | None = None) -> TrialState:
        """Train a trial until it has trained `epochs`, or has ended. Raises what training raises.

        `branch`: the checkpoint from which the trial continues, if it copies another one.
        """
        run_id = self._run_id(trial, branch)
        while True:
            try:
                runner = self._trained(run_id, trial, epochs, branch)
            except OutOfMemoryError as error:
                failure = Failure.of(error)
            else:
                state = runner.state()
                if state.ended:
                    # If the trial failed, some of its folds may have epochs left.
                    self._open.pop(run_id).stop()
                return state
            # Outside of the `except` block, so that neither the error nor the runner holds memory for the next attempt.
            rows = self._open.pop(run_id).rows if run_id in self._open else ()
            if not self._give_up_packs(trial):
                return TrialState(run_id, rows, ended=True, failure=failure)

    def _trained(self, run_id: str, trial: Trial, epochs: int, branch: Branch | None) -> TrialRunner:
        """Train the trial up to `epochs`, and return its runner. A function, so that an error frees its variables."""
        if run_id not in self._open:
            self._open[run_id] = self._start(trial, branch)
        runner = self._open[run_id]
        while not runner.ended and len(runner.rows) < epochs:
            runner.next_epoch()
        return runner

    def _give_up_packs(self, trial: Trial) -> bool:
        """Let the trials of a trial's pack continue alone, which takes less memory. Returns whether there is a pack."""
        key = pack_key(trial.config)
        packs = {place: pack for place, pack in self._pack_of.items() if pack is not None and place[0] == key}
        if not packs:
            return False
        for place, pack in packs.items():
            pack.give_up()
            self._pack_of[place] = None
        for other in self._trials.values():
            if pack_key(other.config) == key:
                self._open.pop(self._run_id(other, None), None)
        # Compiled steps are in reference cycles, which hold the arrays that must be freed.
        gc.collect()
        return True

    def stop(self, trial: Trial, branch: Branch | None = None) -> None:
        """End a trial's training. Its run can be continued from its newest checkpoint."""
        runner = self._open.pop(self._run_id(trial, branch), None)
        if runner is not None:
            runner.stop()

    @cached_property
    def _shared(self) -> SharedModels:
        start_worker()

        from transfer.training.shared_models import SharedModels
        from transfer.training.step import create_strategy

        return SharedModels(create_strategy())

    def suspend(self) -> None:
        """Do nothing: the actor itself has no state in the shared variables."""

    def _model(self, config: Config) -> TransferModel:
        """The untrained model of a configuration. Suspends the training that uses the shared variables."""
        with self._shared.strategy.scope():
            self._shared.take_turn(self)
            return self._shared.model(config, self._sweep.store, self._dataset)

    @cached_property
    def _dataset(self) -> Dataset:
        return self._sweep.dataset

    def _run_id(self, trial: Trial, branch: Branch | None) -> str:
        if branch is None:
            # Cached, because it is needed in each epoch, and naming a run reads the files of its base.
            described = trial.config.model_dump_json()
            if described not in self._run_ids:
                self._run_ids[described] = run_id_for(trial.config, self._dataset)
            return self._run_ids[described]
        came_from = f"{self._sweep.id} {trial.number} {sorted(trial.values.items())} {branch}"
        return f"{self._sweep.config.name}-{hashlib.sha256(came_from.encode()).hexdigest()[:12]}"

    def _run(self, trial: Trial, fold: Fold | None, branch: Branch | None = None) -> Run:
        return open_run(
            self._sweep.store,
            trial.config,
            self._dataset,
            run_id=self._run_id(trial, branch),
            fold=fold,
            started_by=self._sweep.folder,
        )

    def _start(self, trial: Trial, branch: Branch | None) -> TrialRunner:
        self._sweep.check_bases(self._dataset)
        folds = folds_of(self._sweep.config)
        runners = [self._start_run(trial, self._run(trial, fold, branch), branch) for fold in folds]
        return runners[0] if folds == [None] else FoldsRunner(runners, trial.config.phases)

    def _start_run(self, trial: Trial, run: Run, branch: Branch | None) -> TrialRunner:
        flops, key = self._flops(trial), pack_key(trial.config)
        pack = self._pack(key, run.fold) if key is not None and self._packs[key] > 1 else None
        from transfer.training.checkpoints import Checkpoints
        from transfer.training.loop import Training

        # A trial that has left its pack continues alone, from the checkpoint that the pack wrote for it.
        if pack is not None and pack.has(run.id):
            return PackRunner(run, pack, flops, size=self._packs[key])
        start = Checkpoints(run).newest()
        if start is None and branch is not None:
            origin = Run(run.store, branch.run_id, run.config, run.dataset_name, run.dataset_number)
            start = Checkpoints(origin).read(branch.checkpoint)
        training = Training(
            run,
            self._dataset,
            shared=self._shared,
            start=start,
            extract_ahead=comes_to_all_phases(self._sweep.config),
            # The sweep's table shows the progress of all trials.
            shows_progress=False,
        )
        # In a population, another trial may later branch from any checkpoint of this one.
        is_population = sweep_of(self._sweep.config).scheduler.kind == "pbt"
        return SingleRunner(training, flops, keeps_all=is_population)

    def _pack(self, key: str, fold: Fold | None) -> Pack | None:
        """The pack of all trials with this key; None if they train from pixels, or did not fit into memory."""
        from transfer.training.feature_plan import FeaturePlan
        from transfer.training.pack import THREADS, Pack

        if (key, fold) not in self._pack_of:
            trials = [trial for trial in self._trials.values() if pack_key(trial.config) == key]
            runs = [self._run(trial, fold) for trial in trials]
            model = self._model(trials[0].config)
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda run: hold_to_base(run, model.digest), runs))
            inputs = FeaturePlan(runs[0], self._dataset, model)
            inputs.extract()
            cached = inputs.open(0)
            folder = layout.pack_folder(self._sweep.folder, f"{key}-{fold}" if fold else key)
            self._pack_of[key, fold] = Pack(runs, self._dataset, cached, folder=folder) if cached else None
        return self._pack_of[key, fold]

    def _flops(self, trial: Trial) -> float:
        """Multiply-adds of a trial's trained part for one image, in the phase that trains most."""
        from transfer.backbone.blocks import network_flops

        depths = [phase.unfreeze for phase in trial.config.phases]
        described = trial.config.model_dump_json(include={"base", "head"}) + str(depths)
        if described not in self._flops_of:
            model = self._model(trial.config)
            parts = [model.backbone.cut(depth)[1] for depth in depths]
            flops = max(network_flops(part) if part else 0 for part in parts) + network_flops(model.head)
            self._flops_of[described] = float(flops)
        return self._flops_of[described]


class SingleRunner(TrialRunner):
    """A trial that is trained alone: while it trains an epoch, no other trial uses the shared models.

    `keeps_all`: keep all checkpoints when the trial ends, because other trials may branch from them.
    """

    def __init__(self, training: Training, flops: float, *, keeps_all: bool = False) -> None:
        self._training = training
        self._flops = flops
        self._keeps_all = keeps_all
        self._failure: DivergedError | None = None

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """The trial's epochs so far."""
        return self._training.progress.history

    @property
    def phase(self) -> int:
        """The phase of the next epoch; after the end, the number of phases."""
        return self._training.progress.phase

    @property
    def ended(self) -> bool:
        """Whether the trial has no epoch left."""
        return self._training.complete or self._failure is not None

    def next_epoch(self) -> None:
        """Train one more."""
        try:
            self._training.next_epoch()
        except DivergedError as error:
            self._failure = error
        if self._training.complete and not self._keeps_all:
            keep_best_and_last(self._training.run)

    def state(self) -> TrialState:
        """How far it has come."""
        return TrialState(
            run_id=self._training.run.id,
            rows=self.rows,
            ended=self.ended,
            checkpoint=self._training.next_checkpoint - 1,
            trained_flops=self._flops,
            failure=Failure.of(self._failure) if self._failure else None,
        )

    def stop(self) -> None:
        """Do nothing: the weights are in the run's newest checkpoint."""


class PackRunner(TrialRunner):
    """One trial of a pack. To train an epoch of it trains one of all trials of the pack."""

    def __init__(self, run: Run, pack: Pack, flops: float, *, size: int) -> None:
        self._run = run
        self._pack = pack
        self._flops = flops
        self._size = size

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """The trial's epochs so far."""
        return self._pack.histories[self._run.id]

    @property
    def phase(self) -> int:
        """0 until the trial has ended, then 1."""
        return int(self.ended and self._run.id not in self._pack.failures)

    @property
    def ended(self) -> bool:
        """Whether the trial has no epoch left."""
        return self._run.id not in self._pack.live

    def next_epoch(self) -> None:
        """Train one more epoch of all trials of the pack."""
        self._pack.next_epoch()

    def state(self) -> TrialState:
        """How far it has come."""
        failure = self._pack.failures.get(self._run.id)
        return TrialState(
            run_id=self._run.id,
            rows=self.rows,
            ended=self.ended,
            trained_flops=self._flops,
            packed_with=self._size,
            failure=Failure.of(failure) if failure else None,
        )

    def stop(self) -> None:
        """Mask it out."""
        self._pack.stop(self._run.id)


def survey(sweep: Sweep, trials: Sequence[Trial]) -> Survey:
    """The result of `TrialActor.survey`, for a process that trains no trials."""
    return TrialActor(sweep, trials).survey()
