"""The bench of sweeps runs to its end, small, and knows when arms do not agree."""

import json
import subprocess
import sys

import pytest

from scripts.bench.sweep import heads_only, parity_of
from scripts.bench.sweep_plain import Task

RATES = [1e-4, 1e-3, 1e-2]


@pytest.mark.thorough
def test_the_bench_of_sweeps_reports_every_arm_and_every_ratio_of_theirs():
    small = "--images 80 --epochs 1 --rates 1 --depths 0,1 --image-size 32 --arms tutorials,keras-tuner,ours"
    command = [sys.executable, "-m", "scripts.bench.sweep", *small.split(), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stdout, finished.stderr
    result = json.loads(finished.stdout)
    # So few images and trials say little of parity.
    assert finished.returncode == (0 if result["parity"]["agree"] else 1), finished.stdout + finished.stderr
    arms = result["arms"]
    assert arms.keys() == {"tutorials", "tutorials-heads", "keras-tuner", "ours", "ours-again"}
    assert result["ratio"].keys() == {"tutorials / ours", "keras-tuner / ours"}
    for figures in [*arms.values(), *result["ratio"].values()]:
        for kind in ("all", "work", "trials"):
            assert all(figures[kind][measure] > 0 for measure in ("cpu_s", "wall_s"))
    slow, heads = arms["tutorials"], arms["tutorials-heads"]
    assert heads["parts"]["start"] == slow["parts"]["start"]
    assert heads["parts"]["tune"]["cpu_s"] < slow["parts"]["tune"]["cpu_s"]
    compared = [(trial["unfreeze"], trial["learning_rate"]) for trial in result["parity"]["trials"]]
    assert compared == [(0, 1e-4), (1, 1e-4)]


@pytest.mark.parametrize(("arm", "trials"), [("heads", 8), ("heads-32", 32), ("heads-1", 1)])
def test_the_arms_of_heads_have_as_many_trials_as_they_say(arm, trials):
    rates = [0.001 * (1 + number) for number in range(8)]
    task = Task("", "folder", "storage", image_size=160, epochs=5, depths=[0, 1, 3], rates=rates, dropouts=[0.2])
    space = heads_only(task, arm)
    assert space.depths == [0]
    assert len(set(space.rates)) * len(set(space.dropouts)) == trials


def outcomes(ours, *, again=None, slow=(0.5, 0.6, 0.7)):
    arms = {"tutorials": slow, "ours": ours, "ours-again": again or ours}
    tried = {
        arm: [
            {"unfreeze": 0, "learning_rate": rate, "accuracy": accuracy}
            for rate, accuracy in zip(RATES, accuracies, strict=True)
        ]
        for arm, accuracies in arms.items()
    }
    return {arm: [{"tried": trials}] for arm, trials in tried.items()}


def test_arms_that_find_the_same_agree():
    parity = parity_of(outcomes((0.5, 0.6, 0.71), again=(0.51, 0.59, 0.7)), 1000)
    assert parity["agree"]
    assert parity["noise"] == pytest.approx(0.01)
    assert parity["best"]["ours"] == [0, 1e-2, 0.71]


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        ((0.5, 0.6, 0.9), "one trial is far off"),
        ((0.53, 0.63, 0.73), "all are a little better"),
        ((0.5, 0.71, 0.7), "another configuration seems best"),
    ],
)
def test_arms_that_do_not_find_the_same_do_not_agree(ours, reason):
    assert not parity_of(outcomes(ours), 1000)["agree"], reason


def test_where_seeds_differ_as_much_the_arms_agree():
    assert parity_of(outcomes((0.53, 0.63, 0.73), again=(0.5, 0.6, 0.7)), 1000)["agree"]


def test_a_trial_that_diverged_is_told_and_not_compared():
    parity = parity_of(outcomes((0.5, 0.6, None), again=(0.5, 0.6, None)), 1000)
    assert parity["without_result"] == [(0, 1e-2)]
    assert len(parity["trials"]) == 2


def test_without_the_slow_arm_there_is_no_parity():
    found = outcomes((0.5, 0.6, 0.7))
    del found["tutorials"]
    assert parity_of(found, 1000) is None
