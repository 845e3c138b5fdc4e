"""The sweep's search, scheduler and budgets as Ray Tune's objects.

Jaderberg et al., "Population Based Training of Neural Networks" (https://arxiv.org/abs/1711.09846), in its synchronous
form, so that who copies whom does not depend on which trial happened to be faster.

Trials report the sweep's metric as METRIC, larger is better (a loss is negated), and their epochs so far as TIME.
Their parameters in Tune are `trial`, the number, and `values` where they are not those of `fixed_trials`.
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

# As in the paper: a value is drawn anew with this probability, else moved by one of these factors.
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.2)


class Population(ChosenPopulation):
    """Ray Tune's scheduler, with every draw decided by the sweep's seed.

    A trial's parameters are `trial`, its number, which it keeps, and `values`, which change.
    """

    def __init__(self, config: Config, *, time_attr: str) -> None:
        sweep = sweep_of(config)
        self._space, self._seed = space_of(config), sweep.seed
        self._first_values = drawn(config)
        super().__init__(
            time_attr=time_attr,
            perturbation_interval=sweep.scheduler.interval_epochs,
            quantile_fraction=sweep.scheduler.quantile,
            custom_explore_fn=dict,  # Tune asks for one; `explored` does
            log_config=False,
            synch=True,
        )

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Give the trial its first values."""
        trial.config["values"] = self._first_values[trial.config["trial"] - 1]
        super().on_trial_add(tune_controller, trial)

    def chosen(self, trial: TuneTrial, best: list[TuneTrial]) -> TuneTrial:
        """The one of the best trials from which one of the worst goes on."""
        return best[int(self._share(trial, "whom") * len(best))]

    def explored(self, trial: TuneTrial, source: TuneTrial) -> dict[str, Any]:
        """The parameters with which a trial goes on from another one: its own number, and values near the other's."""
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

    `spent` then names the key, and `reason` says it in words.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        self.spent: BudgetKey | None = None
        self.reason = ""
        self._sweep = sweep
        self._started = time.monotonic()
        # An epoch that is reported again, by a trial that was resumed or retried, is counted once.
        self._epochs: set[tuple[int, int]] = set()

    def __call__(self, _trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial that reports is to stop: with all others, or not at all."""
        sweep, trial = self._sweep, result["config"]["trial"]
        self._epochs.add((trial, result["epochs"]))
        # Tune is given a loss with the other sign, so that more is always better.
        sign = 1 if sweep.metric == "accuracy" else -1
        if sweep.target is not None and result["value"] >= sign * sweep.target:
            self._end("target", f"trial {trial} reached the target, {sweep.metric} {sweep.target:g}")
        if sweep.max_epochs is not None and len(self._epochs) >= sweep.max_epochs:
            self._end("max_epochs", f"the budget of {sweep.max_epochs} epochs is spent")
        return self.stop_all()

    def stop_all(self) -> bool:
        """Whether every trial is to stop."""
        limit = self._sweep.max_seconds
        if limit is not None and time.monotonic() - self._started >= limit:
            self._end("max_seconds", f"the budget of {limit:g} seconds is spent")
        return self.spent is not None

    def _end(self, key: BudgetKey, reason: str) -> None:
        if self.spent is None:
            self.spent, self.reason = key, reason


METRIC, MODE, TIME = "value", "max", "epochs"


def param_space(config: Config) -> dict[str, Any]:
    """Numbers of the trials, for searches that know them; what Optuna suggests has its own."""
    sweep = sweep_of(config)
    return {} if sweep.search == "optuna" else {"trial": tune.grid_search(list(range(1, sweep.trial_count + 1)))}


def num_samples(config: Config) -> int:
    """How often Tune goes through `param_space`."""
    sweep = sweep_of(config)
    return sweep.trial_count if sweep.search == "optuna" else 1


def searcher(config: Config, earlier: Sequence[Mapping[str, Any]] = ()) -> Searcher | None:
    """Who suggests values: Optuna, or nobody where trials are known.

    `earlier` are the values of trials that an attempt before this one started, in their order: they are suggested
    again first. Raises ConfigError where Optuna is not installed.
    """
    if sweep_of(config).search != "optuna":
        return None
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "sweep.search is `optuna`, and optuna is not installed.",
            advice=f"{install_extra('optuna')} Or give `search: random`.",
        )
    from transfer.tuning.suggestions import OptunaSuggestions

    return OptunaSuggestions(config, earlier, metric=METRIC, mode=MODE)


def scheduler(config: Config) -> TrialScheduler:
    """Who stops trials early."""
    options = sweep_of(config).scheduler
    if options.kind == "asha":
        # Li et al., "A System for Massively Parallel Hyperparameter Tuning" (https://arxiv.org/abs/1810.05934).
        # No rung at the last epoch: a trial that came so far has finished, and was not stopped.
        return ASHAScheduler(
            time_attr=TIME,
            max_t=longest_epochs(config) - 1,
            grace_period=options.grace_epochs,
            reduction_factor=options.reduction_factor,
            stop_last_trials=False,
        )
    if options.kind == "median":
        # Golovin et al., "Google Vizier" (https://research.google/pubs/pub46180). With an endless time slice, a trial
        # is never paused to wait for others: that would start it anew.
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
    """What ends the sweep as a whole; the clock of `max_seconds` starts here."""
    return Budget(sweep_of(config))
