"""Private parts of Ray Tune: the draws of population-based training, Optuna's study, the environment of trials."""

from __future__ import annotations

from typing import Any

from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining


def keep_from_trials(prefix: str) -> None:
    """Keep environment variables of the driver whose names begin with `prefix` from Tune's trials."""
    ENV_VARS_TO_PROPAGATE.difference_update([name for name in ENV_VARS_TO_PROPAGATE if name.startswith(prefix)])


class ChosenPopulation(PopulationBasedTraining):
    """Tune's population-based training; `chosen` and `explored` replace its draws from the global generator."""

    def chosen(self, trial: Trial, best: list[Trial]) -> Trial:
        """Choose the one of the `best` trials from which `trial`, one of the worst, continues."""
        raise NotImplementedError

    def explored(self, trial: Trial, source: Trial) -> dict[str, Any]:
        """The parameters with which `trial` continues from `source`."""
        raise NotImplementedError

    def trained_until(self, trial: Trial) -> float:
        """Time of the trial's newest result, in units of `time_attr`."""
        time: float = self._trial_state[trial].last_train_time
        return time

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper_quantile: list[Trial], lower_quantile: list[Trial]
    ) -> None:
        if trial in lower_quantile:  # Tune draws one of the best: leave it no choice
            upper_quantile = [self.chosen(trial, upper_quantile)]
        super()._checkpoint_or_exploit(trial, tune_controller, upper_quantile, lower_quantile)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.explored(trial, trial_to_clone), {}


def suggest_next(search: Any, trial_id: str, point: dict[str, Any]) -> None:
    """Let an `OptunaSearch` forget its suggestion for a trial, and suggest `point` next.

    Args:
        search: The search, which has made a suggestion for the trial.
        trial_id: Tune's id of the trial.
        point: Values by key, as in the search's space.
    """
    from optuna.trial import TrialState

    search._ot_study.tell(search._ot_trials.pop(trial_id), state=TrialState.FAIL)  # noqa: SLF001
    search._ot_study.enqueue_trial(point)  # noqa: SLF001
