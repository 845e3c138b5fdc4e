"""Population based training: the worst trials go on from the weights of the best, with changed values.

Jaderberg et al., "Population Based Training of Neural Networks" (https://arxiv.org/abs/1711.09846), in its synchronous
form, so that who copies whom does not depend on which trial happened to be faster.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining

from transfer.config import Config, DomainConfig
from transfer.tuning.space import at, clipped, drawn, share, space_of, sweep_of

# As in the paper: a value is drawn anew with this probability, else moved by one of these factors.
_RESAMPLE = 0.25
_FACTORS = (0.8, 1.2)


class Population(PopulationBasedTraining):
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
            custom_explore_fn=dict,  # Tune asks for one; `_get_new_config` explores
            log_config=False,
            synch=True,
        )

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Give the trial its first values."""
        trial.config["values"] = self._first_values[trial.config["trial"] - 1]
        super().on_trial_add(tune_controller, trial)

    def _checkpoint_or_exploit(
        self, trial: TuneTrial, tune_controller: Any, upper_quantile: list[TuneTrial], lower_quantile: list[TuneTrial]
    ) -> None:
        if trial in lower_quantile:  # Tune draws one of the best from the global generator: leave it no choice
            upper_quantile = [upper_quantile[int(self._share(trial, "whom") * len(upper_quantile))]]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], dict[str, Any]]:
        values = {
            key: _moved(self._space[key], value, self._share(trial, key, "resample"), self._share(trial, key))
            for key, value in trial_to_clone.config["values"].items()
        }
        return {**trial_to_clone.config, "trial": trial.config["trial"], "values": values}, {}

    def _share(self, trial: TuneTrial, *purpose: str) -> float:
        return share(self._seed, trial.config["trial"], self._trial_state[trial].last_train_time, *purpose)


def _moved(domain: DomainConfig, value: Any, resample: float, direction: float) -> Any:
    if resample < _RESAMPLE:
        return at(domain, direction)
    if domain.choices is not None:
        neighbour = domain.choices.index(value) + (-1 if direction < 0.5 else 1)
        return domain.choices[min(max(neighbour, 0), len(domain.choices) - 1)]
    return clipped(domain, value * _FACTORS[direction >= 0.5])
