"""What trains the trials of a sweep, in a process that outlives them.

An actor keeps TensorFlow, the network, the compiled steps and the cached features from one trial to the next. Trials
that `tuning/plan.py` finds fit to be trained together are one program. TensorFlow is imported when an actor is first
asked for something, never where it is described.
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
    """What is known of trials before the first one starts."""

    requests: list[Request]
    """The features to cache for all of them together."""
    flops: dict[int, float]
    """By trial: multiply-adds of its trained part for an image, of the phase that trains most."""


class TrialActor:
    """Trains trials, an epoch whenever it is asked for one. `trials`: all of them, where they are known."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial] | None) -> None:
        # Nothing that can fail: an error of a constructor reaches the driver as text only.
        self._sweep = sweep
        self._trials = {trial.number: trial for trial in trials or ()}
        self._packs = Counter(pack_key(trial.config) for trial in self._trials.values())
        self._open: dict[str, TrialRunner] = {}
        self._pack_of: dict[tuple[str, Fold | None], Pack | None] = {}
        self._flops_of: dict[str, float] = {}
        self._run_ids: dict[str, str] = {}

    def ready(self) -> None:
        """Answer: the process is there."""

    def survey(self) -> Survey:
        """What the trials that are known will need and cost. Raises BackboneError, ConfigError for what cannot be."""
        self._sweep.check_bases(self._dataset)
        requests = requests_of_trials(self._sweep, self._dataset, list(self._trials.values()), model_of=self._model)
        return Survey(requests, {number: self._flops(trial) for number, trial in self._trials.items()})

    def extract(self, requests: Sequence[Request], part: int, of: int) -> Extraction:
        """Compute the features that are requested and not cached yet, for one of so many parts of the images."""
        from transfer.features.extract import Extractor
        from transfer.features.frozen import frozen_parts_of

        config = self._sweep.config
        extractor = Extractor(self._sweep.store, engine=config.features.engine)
        by_split = frozen_parts_of(config, self._model(config).backbone, requests)
        wanted = [(self._dataset.shards_of(split)[part::of], frozen_parts) for split, frozen_parts in by_split.items()]
        return extractor.extract_all(wanted)

    def advance(self, trial: Trial, epochs: int, branch: Branch | None = None) -> TrialState:
        """Train a trial until it has come so many epochs, or to its end. Raises what training raises.

        `branch`: for a trial that took another's weights, where it goes on from.
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
                    # Of a trial that failed, some folds may have epochs to come.
                    self._open.pop(run_id).stop()
                return state
            # What is not held on to any more, by the error neither, is there for the next trial, or another attempt.
            rows = self._open.pop(run_id).rows if run_id in self._open else ()
            if not self._give_up_packs(trial):
                return TrialState(run_id, rows, ended=True, failure=failure)

    def _trained(self, run_id: str, trial: Trial, epochs: int, branch: Branch | None) -> TrialRunner:
        """The trial's runner, that far. A call of its own: what it holds is free once the error that ended it is."""
        if run_id not in self._open:
            self._open[run_id] = self._start(trial, branch)
        runner = self._open[run_id]
        while not runner.ended and len(runner.rows) < epochs:
            runner.next_epoch()
        return runner

    def _give_up_packs(self, trial: Trial) -> bool:
        """Have the trials of a trial's pack go on alone, since one may fit where all do not; whether there was one."""
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
        # Compiled steps refer to each other, and to the arrays that are to make room.
        gc.collect()
        return True

    def stop(self, trial: Trial, branch: Branch | None = None) -> None:
        """Train a trial no further. Its run could go on from its newest checkpoint."""
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
        """Nothing of the actor's own is in the network's variables."""

    def _model(self, config: Config) -> TransferModel:
        """The untrained model; whoever trains has been suspended."""
        with self._shared.strategy.scope():
            self._shared.take_turn(self)
            return self._shared.model(config, self._dataset.classes)

    @cached_property
    def _dataset(self) -> Dataset:
        return self._sweep.dataset

    def _run_id(self, trial: Trial, branch: Branch | None) -> str:
        if branch is None:
            # Asked for each epoch; naming a run looks at the files of its base, in a bucket by a request.
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

        # One that left its pack goes on alone, from what that left it.
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
            # The sweep's table shows how far each trial is.
            shows_progress=False,
        )
        # In a population, a trial that starts later may go on from what this one has left behind by then.
        is_population = sweep_of(self._sweep.config).scheduler.kind == "pbt"
        return SingleRunner(training, flops, keeps_all=is_population)

    def _pack(self, key: str, fold: Fold | None) -> Pack | None:
        """The pack of all trials with that key; None where they train from pixels, or did not fit."""
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
        """Multiply-adds of a trial's trained part for an image, of the phase that trains most."""
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
    """A trial that has the shared models to itself while an epoch of it is trained.

    `keeps_all`: others may go on from any of its checkpoints, so they stay when it comes to its end.
    """

    def __init__(self, training: Training, flops: float, *, keeps_all: bool = False) -> None:
        self._training = training
        self._flops = flops
        self._keeps_all = keeps_all
        self._failure: DivergedError | None = None

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Its epochs so far."""
        return self._training.progress.history

    @property
    def phase(self) -> int:
        """The phase that its next epoch belongs to; after its end, one more than its last."""
        return self._training.progress.phase

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""
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
        """What it has learned is in its newest checkpoint."""


class PackRunner(TrialRunner):
    """One of the trials of a pack, which are all trained whenever one of them is."""

    def __init__(self, run: Run, pack: Pack, flops: float, *, size: int) -> None:
        self._run = run
        self._pack = pack
        self._flops = flops
        self._size = size

    @property
    def rows(self) -> tuple[EpochRow, ...]:
        """Its epochs so far."""
        return self._pack.histories[self._run.id]

    @property
    def phase(self) -> int:
        """0, and 1 when it has come to its end."""
        return int(self.ended and self._run.id not in self._pack.failures)

    @property
    def ended(self) -> bool:
        """Whether it has no epoch to come."""
        return self._run.id not in self._pack.live

    def next_epoch(self) -> None:
        """Train one more, of all trials of the pack."""
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
    """`TrialActor.survey` in a process that ends with it."""
    return TrialActor(sweep, trials).survey()
