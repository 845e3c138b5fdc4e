"""The sweep's search, scheduler and budgets as Ray Tune's objects.

Trials report the sweep's metric as METRIC, larger is better (a loss is negated), and their epochs so far as TIME.
Their parameters in Tune are `trial`, the number, and `values` where they are not those of `fixed_trials`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from transfer.config import Config
from transfer.errors import ConfigError
from transfer.tuning.budget import Budget
from transfer.tuning.population import Population
from transfer.tuning.space import longest_epochs, sweep_of

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
            advice="Install the extra: pip install 'transfer[optuna]', or give `search: random`.",
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
