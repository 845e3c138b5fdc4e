"""The sweep's search, scheduler and budgets as Ray Tune's objects.

Population based training (Jaderberg et al., https://arxiv.org/abs/1711.09846) is used in its synchronous form, in which
the speed of trials does not decide which trial copies which.

Trials report the sweep's metric as METRIC, larger is better (a loss is negated), and their epochs so far as TIME.
Their parameters in Tune are `trial`, the number, and `values` if they are not those of `fixed_trials`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune import Stopper
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from transfer.config import Config, DomainConfig, SweepConfig
from transfer.errors import ConfigError
from transfer.runtime.distribution import install_extra
from transfer.runtime.ray_private.tune import ChosenPopulation
from transfer.tuning.records import BudgetKey
from transfer.tuning.space import at, clipped, drawn, longest_epochs, share, space_of, sweep_of

# As in the paper: with this probability a new value is drawn, otherwise the value is multiplied by one of the factors.
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.2)


class Population(ChosenPopulation):
    """Ray Tune's scheduler for populations, in which the sweep's seed decides every draw.

    A trial's parameters are `trial`, its number, which never changes, and `values`, which change.
    """

    def __init__(self, config: Config, *, time_attr: str) -> None:
        sweep = sweep_of(config)
        self._space, self._seed = space_of(config), sweep.seed
        self._first_values = drawn(config)
        super().__init__(
            time_attr=time_attr,
            perturbation_interval=sweep.scheduler.interval_epochs,
            quantile_fraction=sweep.scheduler.quantile,
            custom_explore_fn=dict,  # Tune requires a function; `explored` is used instead
            log_config=False,
            synch=True,
        )

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Give the trial its first values."""
        trial.config["values"] = self._first_values[trial.config["trial"] - 1]
        super().on_trial_add(tune_controller, trial)

    def chosen(self, trial: TuneTrial, best: list[TuneTrial]) -> TuneTrial:
        """One of the best trials, which `trial`, one of the worst, copies."""
        return best[int(self._share(trial, "whom") * len(best))]

    def explored(self, trial: TuneTrial, source: TuneTrial) -> dict[str, Any]:
        """The parameters with which `trial` continues from `source`: its own number, and values near the source's."""
        values = {
            key: _moved(self._space[key], value, self._share(trial, key, "resample"), self._share(trial, key))
            for key, value in source.config["values"].items()
        }
        return {**source.config, "trial": trial.config["trial"], "values": values}

    def _share(self, trial: TuneTrial, *purpose: str) -> float:
        return share(self._seed, trial.config["trial"], self.trained_until(trial), *purpose)


def _moved(domain: DomainConfig, value: Any, resample: float, direction: float) -> Any:
    if resample < _RESAMPLE:
        return at(domain, direction)
    if domain.choices is not None:
        neighbour = domain.choices.index(value) + (-1 if direction < 0.5 else 1)
        return domain.choices[min(max(neighbour, 0), len(domain.choices) - 1)]
    return clipped(domain, value * _FACTORS[direction >= 0.5])


class Budget(Stopper):
    """Ends a sweep when its target is reached or its epochs or seconds are spent.

    After that, `spent` is the key, and `reason` a text about it.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self.spent: BudgetKey | None = None
        self.reason = ""
        self._sweep = sweep
        self._started = time.monotonic()
        # By trial and epoch: an epoch that a resumed or retried trial reports again is counted once.
        self._epochs: set[tuple[int, int]] = set()

    def __call__(self, _trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial stops, which it does only together with all others."""
        sweep, trial = self._sweep, result["config"]["trial"]
        self._epochs.add((trial, result["epochs"]))
        # A loss is reported to Tune with the opposite sign, so that larger is always better.
        sign = 1 if sweep.metric == "accuracy" else -1
        if sweep.target is not None and result["value"] >= sign * sweep.target:
            self._end("target", f"trial {trial} reached the target, {sweep.metric} {sweep.target:g}")
        if sweep.max_epochs is not None and len(self._epochs) >= sweep.max_epochs:
            self._end("max_epochs", f"the budget of {sweep.max_epochs} epochs is spent")
        return self.stop_all()

    def stop_all(self) -> bool:
        """Whether all trials stop."""
        limit = self._sweep.max_seconds
        if limit is not None and time.monotonic() - self._started >= limit:
            self._end("max_seconds", f"the budget of {limit:g} seconds is spent")
        return self.spent is not None

    def _end(self, key: BudgetKey, reason: str) -> None:
        if self.spent is None:
            self.spent, self.reason = key, reason


METRIC, MODE, TIME = "value", "max", "epochs"


def param_space(config: Config) -> dict[str, Any]:
    """Tune's grid of trial numbers for searches whose trials are known; empty for Optuna, which numbers its own."""
    sweep = sweep_of(config)
    return {} if sweep.search == "optuna" else {"trial": tune.grid_search(list(range(1, sweep.trial_count + 1)))}


def num_samples(config: Config) -> int:
    """Number of times that Tune samples `param_space`."""
    sweep = sweep_of(config)
    return sweep.trial_count if sweep.search == "optuna" else 1


def searcher(config: Config, earlier: Sequence[Mapping[str, Any]] = ()) -> Searcher | None:
    """The search that suggests values: Optuna, or None if the trials are known.

    `earlier`: values of the trials that an earlier attempt started, in their order. They are suggested again first.
    Raises ConfigError if Optuna is not installed.
    """
    if sweep_of(config).search != "optuna":
        return None
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "sweep.search is `optuna`, and optuna is not installed.",
            advice=f"{install_extra('optuna')} Or set sweep.search to `random`.",
        )
    from transfer.tuning.suggestions import OptunaSuggestions

    return OptunaSuggestions(config, earlier, metric=METRIC, mode=MODE)


def scheduler(config: Config) -> TrialScheduler:
    """Who stops trials early."""
    options = sweep_of(config).scheduler
    if options.kind == "asha":
        # Li et al., "A System for Massively Parallel Hyperparameter Tuning" (https://arxiv.org/abs/1810.05934).
        # There is no rung at the last epoch: a trial that gets there has finished, and is not to be stopped.
        return ASHAScheduler(
            time_attr=TIME,
            max_t=longest_epochs(config) - 1,
            grace_period=options.grace_epochs,
            reduction_factor=options.reduction_factor,
            stop_last_trials=False,
        )
    if options.kind == "median":
        # Golovin et al., "Google Vizier" (https://research.google/pubs/pub46180). The infinite time slice keeps Tune
        # from pausing trials: a paused trial would start again from its first epoch.
        return MedianStoppingRule(
            time_attr=TIME,
            grace_period=options.grace_epochs,
            min_samples_required=options.min_trials,
            min_time_slice=float("inf"),
        )
    if options.kind == "pbt":
        return Population(config, time_attr=TIME)
    return FIFOScheduler()


def stopper(config: Config) -> Budget:
    """The budget of the whole sweep. The time of `max_seconds` starts with this call."""
    return Budget(sweep_of(config))
