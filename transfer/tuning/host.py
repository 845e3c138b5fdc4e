"""What trains the trials of a sweep, in a process that outlives them.

A host keeps TensorFlow, the network, the compiled steps and the kept activations from one trial to the next. Trials
that `tuning/packs.py` finds fit to be trained together are one program. TensorFlow is imported when a host is first
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

from transfer.activations.request import Extraction, Request
from transfer.config import Config
from transfer.dataset.manifest import Dataset
from transfer.errors import OutOfMemoryError
from transfer.startup import start_worker
from transfer.training.folds import Fold
from transfer.training.pinned_base import hold_to_base
from transfer.training.run import Run, open_run, run_id_for
from transfer.tuning.at_work import Alone, AtWork, Branch, Failure, Packed, TrialState
from transfer.tuning.folded import Folded
from transfer.tuning.packs import pack_key
from transfer.tuning.space import Trial, depths_within_reach, sweep_of
from transfer.tuning.sweep import Sweep

if TYPE_CHECKING:
    from transfer.training.model import TransferModel
    from transfer.training.stacked import Pack
    from transfer.training.workbench import Workbench


@dataclass(frozen=True)
class Survey:
    """What is known of trials before the first one starts."""

    requests: list[Request]
    """What is to be kept of the frozen part for all of them together."""
    flops: dict[int, float]
    """By trial: multiply-adds of its trained part for an image, of the phase that trains most."""


class TrialHost:
    """Trains trials, an epoch whenever it is asked for one. `trials`: all of them, where they are known."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial] | None) -> None:
        # Nothing that can fail: an error of a constructor reaches the driver as text only.
        self._sweep = sweep
        self._trials = {trial.number: trial for trial in trials or ()}
        self._packs = Counter(pack_key(trial.config) for trial in self._trials.values())
        self._open: dict[str, AtWork] = {}
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
        """What is to be kept of the frozen part: of each phase that every trial comes to."""
        from transfer.training.inputs import Inputs

        known = [trial.config for trial in self._trials.values()] or depths_within_reach(self._sweep.config)
        # What a trial of another base needs is computed when it starts.
        usual = [config for config in known if _seen_by(config) == _seen_by(self._sweep.config)]
        by_depth = {str(_depths(config)): config for config in reversed(usual)}
        found: dict[Request, None] = {}
        for config in reversed(by_depth.values()):
            run = open_run(self._sweep.store, config, self._dataset, fold=self._folds[0])
            model = self._model(config)
            hold_to_base(run, model.digest)
            inputs = Inputs(run, self._dataset, model, sharing=self._sharing(config))
            inputs.claim()
            found.update(dict.fromkeys(inputs.requests(None if self._sees_all_phases else [0])))
        return list(found)

    def extract(self, requests: Sequence[Request], part: int, of: int) -> Extraction:
        """Compute what is requested and not kept yet, for one of so many parts of the images."""
        from transfer.activations.extract import Extractor, prefixes_of

        config = self._sweep.config
        extractor = Extractor(self._sweep.store, engine=config.activations.engine)
        by_split = prefixes_of(config, self._model(config).backbone, requests)
        wanted = [(self._dataset.shards_of(split)[part::of], prefixes) for split, prefixes in by_split.items()]
        return extractor.extract_all(wanted)

    def advance(self, trial: Trial, epochs: int, branch: Branch | None = None) -> TrialState:
        """Train a trial until it has come so many epochs, or to its end. Raises what training raises.

        `branch`: for a trial that took another's weights, where it goes on from.
        """
        run_id = self._run_id(trial, branch)
        try:
            at_work = self._advanced(run_id, trial, epochs, branch)
        except OutOfMemoryError as error:
            failure = Failure.of(error)
        else:
            return self._state(run_id, at_work)
        # What is not held on to any more, by the error neither, is there for the next trial, or for another attempt.
        rows = self._open.pop(run_id).rows if run_id in self._open else ()
        if self._give_up_packs(trial):
            return self.advance(trial, epochs, branch)
        return TrialState(run_id, rows, complete=True, failure=failure)

    def _advanced(self, run_id: str, trial: Trial, epochs: int, branch: Branch | None) -> AtWork:
        if run_id not in self._open:
            self._open[run_id] = self._start(trial, branch)
        at_work = self._open[run_id]
        while not at_work.ended and len(at_work.rows) < epochs:
            at_work.next_epoch()
        return at_work

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

    def _state(self, run_id: str, at_work: AtWork) -> TrialState:
        state = at_work.state()
        if state.complete:
            # Of a trial that failed, some folds may have epochs to come.
            self._open.pop(run_id).stop()
        return state

    def stop(self, trial: Trial, branch: Branch | None = None) -> None:
        """Train a trial no further. Its run could go on from its newest checkpoint."""
        at_work = self._open.pop(self._run_id(trial, branch), None)
        if at_work is not None:
            at_work.stop()

    @cached_property
    def _workbench(self) -> Workbench:
        start_worker()

        from transfer.training.strategy import create_strategy
        from transfer.training.workbench import Workbench

        return Workbench(create_strategy())

    def suspend(self) -> None:
        """Nothing of the host's own is in the network's variables."""

    def _model(self, config: Config) -> TransferModel:
        """The untrained model; whoever trains has been suspended."""
        with self._workbench.strategy.scope():
            self._workbench.take_turn(self)
            return self._workbench.model(config, self._dataset.classes)

    @cached_property
    def _dataset(self) -> Dataset:
        return self._sweep.dataset

    @property
    def _sees_all_phases(self) -> bool:
        """Whether every trial comes to all of its phases, so that one pass over the images can serve all of them."""
        sweep = self._sweep.config.sweep
        return sweep is not None and sweep.scheduler.kind == "none"

    def _sharing(self, config: Config) -> int:
        """How many trials train on the same frozen part as one with that configuration, as far as is known."""
        return max(sum(_depths(trial.config) == _depths(config) for trial in self._trials.values()), 1)

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
        return open_run(self._sweep.store, trial.config, self._dataset, run_id=self._run_id(trial, branch), fold=fold)

    def _start(self, trial: Trial, branch: Branch | None) -> AtWork:
        self._sweep.check_bases(self._dataset)
        if self._folds == [None]:
            return self._start_run(trial, self._run(trial, None, branch), branch)
        runs = [self._run(trial, fold) for fold in self._folds]
        return Folded([self._start_run(trial, run, None) for run in runs], trial.config.phases)

    def _start_run(self, trial: Trial, run: Run, branch: Branch | None) -> AtWork:
        flops, key = self._flops(trial), pack_key(trial.config)
        pack = self._pack(key, run.fold) if key is not None and self._packs[key] > 1 else None
        from transfer.training.checkpoints import Checkpoints
        from transfer.training.loop import Training

        # One that left its pack goes on alone, from what that left it.
        if pack is not None and pack.has(run.id):
            return Packed(run, pack, flops, size=self._packs[key])
        start = Checkpoints(run).newest()
        if start is None and branch is not None:
            origin = Run(run.store, branch.run_id, run.config, run.dataset_name, run.dataset_number)
            start = Checkpoints(origin).read(branch.checkpoint)
        training = Training(
            run,
            self._dataset,
            workbench=self._workbench,
            start=start,
            sharing=self._sharing(trial.config),
            extract_ahead=self._sees_all_phases,
        )
        return Alone(training, flops)

    def _pack(self, key: str, fold: Fold | None) -> Pack | None:
        """The pack of all trials with that key; None where pixels were found cheaper, or where they did not fit."""
        from transfer.training.inputs import Inputs
        from transfer.training.stacked import THREADS, Pack

        if (key, fold) not in self._pack_of:
            trials = [trial for trial in self._trials.values() if pack_key(trial.config) == key]
            runs = [self._run(trial, fold) for trial in trials]
            model = self._model(trials[0].config)
            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda run: hold_to_base(run, model.digest), runs))
            inputs = Inputs(runs[0], self._dataset, model, sharing=len(runs))
            inputs.extract()
            kept = inputs.open(0)
            folder = f"{self._sweep.folder}/packs/{key}" + (f"-{fold}" if fold else "")
            self._pack_of[key, fold] = Pack(runs, self._dataset, kept, folder=folder) if kept else None
        return self._pack_of[key, fold]

    def _flops(self, trial: Trial) -> float:
        """Multiply-adds of a trial's trained part for an image, of the phase that trains most."""
        from transfer.backbone.flops import network_flops

        described = trial.config.model_dump_json(include={"base", "head"}) + str(_depths(trial.config))
        if described not in self._flops_of:
            model = self._model(trial.config)
            parts = [model.backbone.cut(depth)[1] for depth in _depths(trial.config)]
            flops = max(network_flops(part) if part else 0 for part in parts) + network_flops(model.head)
            self._flops_of[described] = float(flops)
        return self._flops_of[described]


def survey(sweep: Sweep, trials: Sequence[Trial]) -> Survey:
    """`TrialHost.survey` in a process that ends with it."""
    return TrialHost(sweep, trials).survey()


def _depths(config: Config) -> list[int | str]:
    return [phase.unfreeze for phase in config.phases]


def _seen_by(config: Config) -> tuple[object, ...]:
    """What the frozen part's output depends on, other than its depth."""
    training = config.training
    return config.base, config.head.pooling, training.mixed_precision, config.augmentation, training.seed
