"""What trains the trials of a sweep, in a process that outlives them.

An actor keeps TensorFlow, the network, the compiled steps and the cached features from one trial to the next. Trials
that `tuning/plan.py` finds fit to be trained together are one program. TensorFlow is imported when an actor is first
asked for something, never where it is described.
"""

from __future__ import annotations

import gc
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transfer.catalog import layout
from transfer.catalog.run import CheckpointEntry, EpochRow
from transfer.config import Config, Decides, deciding
from transfer.dataset.manifest import Dataset
from transfer.errors import DivergedError, OutOfMemoryError
from transfer.features.layout import Extraction, Request
from transfer.runtime.startup import start_worker
from transfer.training.checkpoints import keep_best_and_last
from transfer.training.distributed import train_on_workers
from transfer.training.folds import Fold
from transfer.training.run import Run, hold_to_base, open_run, run_id_for
from transfer.tuning.plan import pack_key
from transfer.tuning.records import Sweep
from transfer.tuning.space import Trial, depths_within_reach, sweep_of
from transfer.tuning.trial_runner import Branch, Failure, FoldsRunner, PackRunner, SingleRunner, TrialRunner, TrialState

if TYPE_CHECKING:
    from transfer.training.model import TransferModel
    from transfer.training.pack import Pack
    from transfer.training.shared_models import SharedModels

POLL_S = 0.5


class GroupTrial:
    """Trains a trial's run on `workers.count` workers, and tells how far it has come by its checkpoints."""

    def __init__(self, sweep: Sweep, dataset: Dataset, trial: Trial) -> None:
        sweep.check_bases(dataset)
        self._run: Run = open_run(sweep.store, trial.config, dataset, started_by=sweep.folder)
        self._error: Exception | None = None
        # Ends with the process: whoever stops the trial ends that, and with it the workers that it owns.
        self._thread = threading.Thread(target=self._train, daemon=True)
        if not self._progress()[1]:
            self._thread.start()

    def advance(self, epochs: int) -> TrialState:
        """Wait until the trial has come so many epochs, or to its end. Raises what training raised."""
        while True:
            # Asked first: what a thread that has ended wrote is seen.
            works = self._thread.is_alive()
            rows, complete = self._progress()
            if complete or len(rows) >= epochs or not works:
                break
            time.sleep(POLL_S)
        if complete and self._thread.is_alive():
            # Until its workers have left, the next trial would wait for their CPUs.
            self._thread.join()
        failure = None
        if len(rows) < epochs and not complete:
            if not isinstance(self._error, DivergedError | OutOfMemoryError):
                raise self._error or RuntimeError(f"run {self._run.id} ended without a word")
            failure = Failure.of(self._error)
        return TrialState(run_id=self._run.id, rows=rows, complete=complete or failure is not None, failure=failure)

    def _train(self) -> None:
        try:
            train_on_workers(self._run)
            keep_best_and_last(self._run)
        except Exception as error:  # noqa: BLE001 - raised again where somebody hears it
            self._error = error

    def _progress(self) -> tuple[tuple[EpochRow, ...], bool]:
        found = self._run.checkpoints.latest_as(CheckpointEntry)
        if found is None:
            return (), False
        progress = found[1].progress
        return progress.history, progress.complete


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
        return Survey(self._requests(), {number: self._flops(trial) for number, trial in self._trials.items()})

    def _requests(self) -> list[Request]:
        """The features to cache: of each phase that every trial comes to."""
        from transfer.training.feature_plan import FeaturePlan

        known = [trial.config for trial in self._trials.values()] or depths_within_reach(self._sweep.config)
        # What a trial of another base needs is computed when it starts.
        usual = [config for config in known if _seen_by(config) == _seen_by(self._sweep.config)]
        by_depth = {str(_depths(config)): config for config in reversed(usual)}
        found: dict[Request, None] = {}
        for config in reversed(by_depth.values()):
            run = open_run(self._sweep.store, config, self._dataset, fold=self._folds[0], started_by=self._sweep.folder)
            model = self._model(config)
            hold_to_base(run, model.digest)
            inputs = FeaturePlan(run, self._dataset, model)
            inputs.claim()
            found.update(dict.fromkeys(inputs.requests(None if self._sees_all_phases else [0])))
        return list(found)

    def extract(self, requests: Sequence[Request], part: int, of: int) -> Extraction:
        """Compute the features that are requested and not cached yet, for one of so many parts of the images."""
        from transfer.features.extract import Extractor, frozen_parts_of

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
        try:
            runner = self._advanced(run_id, trial, epochs, branch)
        except OutOfMemoryError as error:
            failure = Failure.of(error)
        else:
            return self._state(run_id, runner)
        # What is not held on to any more, by the error neither, is there for the next trial, or for another attempt.
        rows = self._open.pop(run_id).rows if run_id in self._open else ()
        if self._give_up_packs(trial):
            return self.advance(trial, epochs, branch)
        return TrialState(run_id, rows, complete=True, failure=failure)

    def _advanced(self, run_id: str, trial: Trial, epochs: int, branch: Branch | None) -> TrialRunner:
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

    def _state(self, run_id: str, runner: TrialRunner) -> TrialState:
        state = runner.state()
        if state.complete:
            # Of a trial that failed, some folds may have epochs to come.
            self._open.pop(run_id).stop()
        return state

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

    @property
    def _sees_all_phases(self) -> bool:
        """Whether every trial comes to all of its phases, so that one pass over the images can serve all of them."""
        sweep = self._sweep.config.sweep
        return sweep is not None and sweep.scheduler.kind == "none"

    @cached_property
    def _folds(self) -> list[Fold | None]:
        """What a trial is validated on, each in a run of its own: None is the validation split."""
        count = sweep_of(self._sweep.config).folds
        return [Fold(index, count) for index in range(count)] or [None]

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
        if self._folds == [None]:
            return self._start_run(trial, self._run(trial, None, branch), branch)
        runs = [self._run(trial, fold) for fold in self._folds]
        return FoldsRunner([self._start_run(trial, run, None) for run in runs], trial.config.phases)

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
            extract_ahead=self._sees_all_phases,
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

        described = trial.config.model_dump_json(include={"base", "head"}) + str(_depths(trial.config))
        if described not in self._flops_of:
            model = self._model(trial.config)
            parts = [model.backbone.cut(depth)[1] for depth in _depths(trial.config)]
            flops = max(network_flops(part) if part else 0 for part in parts) + network_flops(model.head)
            self._flops_of[described] = float(flops)
        return self._flops_of[described]


def survey(sweep: Sweep, trials: Sequence[Trial]) -> Survey:
    """`TrialActor.survey` in a process that ends with it."""
    return TrialActor(sweep, trials).survey()


def _depths(config: Config) -> list[int | str]:
    return [phase.unfreeze for phase in config.phases]


def _seen_by(config: Config) -> tuple[object, ...]:
    """What the frozen part's output depends on, other than its depth."""
    features = deciding(config, Decides.FEATURES)
    del features["phases"]  # Depth, and whether a phase augments.
    return features, config.augmentation.views
