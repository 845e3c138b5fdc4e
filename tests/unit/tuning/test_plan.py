"""What is said of a sweep before it."""

from collections import Counter

import pytest

from tests.unit.tuning.test_space import RATE, config_of
from transfer.tuning.plan import pack_key, plan_for_people, sweep_plan
from transfer.tuning.space import fixed_trials

GRID = {"phases.0.unfreeze": [0, 2], "phases.0.learning_rate": [1e-3, 1e-2, 1e-1]}


def said_of(config):
    return plan_for_people(sweep_plan(config), config)


def test_a_grid_is_told_with_its_packs_and_phases():
    config = config_of(GRID, search="grid", scheduler="asha", max_epochs=20)
    plan = sweep_plan(config)
    packs = Counter(pack_key(trial.config) for trial in fixed_trials(config))
    assert plan["packed"] == {"trials": 3, "packs": 1}
    assert max(packs.values()) == 3
    assert (plan["trials"], plan["at_once"], plan["phases"], plan["epochs"]) == (
        6,
        1,
        [["head"], ["last 2 blocks"]],
        5,
    )
    assert said_of(config) == {
        "sweep": "6 trials of 6 combinations, grid search; the best accuracy on the validation split wins",
        "searched": "phases.0.unfreeze: 0, 2; phases.0.learning_rate: 0.001, 0.01, 0.1",
        "scheduler": "asha (grace_epochs 1, reduction_factor 3)",
        "sweep_ends": "when all trials ended, or after 20 epochs over all trials",
        "at_once": "1",
        "packed": "3 of 6 trials, in 1 pack, each trained as one program, where features are cached",
        "phases_of_trials": "head; last 2 blocks: up to 5 epochs",
    }


def test_ranges_are_told_with_their_ends():
    config = config_of({**RATE, "training.seed": {"integers": [0, 9]}}, trials=4, metric="loss", folds=3)
    said = said_of(config)
    assert said["sweep"] == "4 trials, random search; the best loss over 3 folds wins"
    assert said["searched"] == "phases.0.learning_rate: 1e-5 to 0.1 (log_uniform); training.seed: 0 to 9 (integers)"
    assert said["scheduler"] == "none: every trial trains all its epochs"


@pytest.mark.parametrize("options", [{"search": "optuna"}, {"scheduler": {"kind": "pbt"}}])
def test_trials_whose_values_depend_on_results_are_not_packed(options):
    plan = sweep_plan(config_of(RATE, trials=4, **options))
    assert (plan["trials"], plan["packed"]["trials"], plan["phases"]) == (4, 0, [["head"]])


def test_phases_that_optuna_chooses_are_told():
    phases = [[{"unfreeze": 0}], [{"unfreeze": 0}, {"unfreeze": "all"}]]
    assert sweep_plan(config_of({"phases": phases}, search="optuna"))["phases"] == [["head"], ["head", "all blocks"]]
