"""Values suggested by Optuna from the results so far.

The sampler is TPE (Watanabe, "Tree-structured Parzen Estimator", https://arxiv.org/abs/2304.11127) with Optuna's
defaults: it is multivariate, and its constant liar keeps trials that run at the same time apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from ray.tune.search.optuna import OptunaSearch

from transfer.config import Config, DomainConfig
from transfer.runtime.ray_private.tune import suggest_next
from transfer.tuning.space import clipped, draw, share, space_of, sweep_of


class OptunaSuggestions(OptunaSearch):
    """Ray Tune's Optuna search. It suggests `trial`, the number, and `values`, without repeating a combination."""

    def __init__(self, config: Config, earlier: Sequence[Mapping[str, Any]], *, metric: str, mode: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs each study
        self._domains, self._sweep_seed = space_of(config), sweep_of(config).seed
        self._numbers: dict[str, int] = {}
        self._tried: set[str] = set()
        super().__init__(
            space={key: _distribution(domain) for key, domain in self._domains.items()},
            metric=metric,
            mode=mode,
            sampler=_SeededByTrial(self._sweep_seed),
            points_to_evaluate=[_point(self._domains, values) for values in earlier],
        )

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Number and values of the trial that Tune starts next."""
        number = self._numbers.setdefault(trial_id, len(self._numbers) + 1)
        values = _values(self._domains, super().suggest(trial_id))
        if repr(values) in self._tried:
            # The same values would have the same result, so new ones are drawn.
            untried = draw(self._domains, self._sweep_seed, number, self._tried)
            suggest_next(self, trial_id, _point(self._domains, untried))
            values = _values(self._domains, super().suggest(trial_id))
        self._tried.add(repr(values))
        return {"trial": number, "values": values}


class _SeededByTrial(BaseSampler):
    """TPE with a new random generator for each trial, seeded by the trial's number.

    When a sweep is resumed, Optuna gets its earlier trials without a draw. With one generator for all trials, the next
    trial would then get the draws of the first one.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_trial(self, study: Any, trial: Any) -> None:
        self._sampler = TPESampler(seed=int(share(self._seed, "optuna", trial.number) * 2**31))
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _distribution(domain: DomainConfig) -> BaseDistribution:
    if domain.choices is not None:  # by index: Optuna takes no lists or sections, and 0, 0.0 and False are equal for it
        return CategoricalDistribution(range(len(domain.choices)))
    if domain.integers is not None:
        first, last = domain.integers
        return IntDistribution(first, last)
    low, high = domain.ends or (0.0, 1.0)
    return FloatDistribution(low, high, log=domain.log_uniform is not None)


def _point(space: Mapping[str, DomainConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values in Optuna's form."""
    return {
        key: value if space[key].choices is None else (space[key].choices or []).index(value)
        for key, value in values.items()
    }


def _values(space: Mapping[str, DomainConfig], point: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's values in the configuration's form."""
    values: dict[str, Any] = {}
    for key, domain in space.items():
        values[key] = clipped(domain, point[key]) if domain.choices is None else domain.choices[point[key]]
    return values
