"""Whether the arms of `scripts.bench.sweep` find the same, within noise.

Noise is what another seed changes: the root mean square, over the trials of the library, of the difference between two
seeds (arms `ours` and `ours-again`). To that comes, for a single trial of accuracy p, that n images validate it:
2 p (1 - p) / n. The parity has three parts, each within three standard deviations:

- each trial's validation accuracy is that of the same trial of the slow sweep;
- so is their mean over all trials, where only the noise of seeds is left, for all see the same images;
- in the slow sweep's own figures, the configuration that the library finds best is as good as its best one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Key = tuple[int, float]
"""Of a trial: unfreeze and learning rate."""


def parity_of(outcomes: Mapping[str, Sequence[Mapping[str, Any]]], images: int) -> dict[str, Any] | None:
    """What was compared, over all rounds, and whether all of it agrees; None where one of the two arms did not run.

    `images`: of the validation split.
    """
    arms = [arm for arm in ("tutorials", "keras-tuner", "ours", "ours-again") if arm in outcomes]
    accuracy = {arm: _means([_accuracies(outcome) for outcome in outcomes[arm]]) for arm in arms}
    if not {"tutorials", "ours"} <= accuracy.keys():
        return None
    slow, ours, again = (accuracy[arm] for arm in ("tutorials", "ours", "ours-again"))
    compared = sorted(slow.keys() & ours.keys() & again.keys())
    # One image is the least that two accuracies can differ by.
    noise = max(math.sqrt(sum((ours[key] - again[key]) ** 2 for key in compared) / len(compared)), 1 / images)

    def tolerance(key: Key) -> float:
        return 3 * math.sqrt(noise**2 + 2 * slow[key] * (1 - slow[key]) / images)

    trials = [
        {
            "unfreeze": key[0],
            "learning_rate": key[1],
            **{arm: found.get(key) for arm, found in accuracy.items()},
            "tolerance": tolerance(key),
            "agree": abs(ours[key] - slow[key]) <= tolerance(key),
        }
        for key in compared
    ]
    mean = sum(ours[key] - slow[key] for key in compared) / len(compared)
    mean_tolerance = 3 * noise / math.sqrt(len(compared))
    best, best_of_slow = _best(ours), _best(slow)
    lost = slow[best_of_slow] - slow[best]
    return {
        "agree": all(trial["agree"] for trial in trials) and abs(mean) <= mean_tolerance and lost <= tolerance(best),
        "noise": noise,
        "trials": trials,
        "without_result": sorted(ours.keys() ^ slow.keys()),
        "mean": {"difference": mean, "tolerance": mean_tolerance},
        "best": {
            **{arm: [*_best(found), max(found.values())] for arm, found in accuracy.items()},
            "lost": lost,
            "tolerance": tolerance(best),
        },
    }


def _accuracies(outcome: Mapping[str, Any]) -> dict[Key, float]:
    """Of the trials that have one: a trial that diverged has none."""
    found = {(trial["unfreeze"], trial["learning_rate"]): trial["accuracy"] for trial in outcome["tried"]}
    return {key: accuracy for key, accuracy in found.items() if accuracy is not None}


def _means(rounds: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    common = set.intersection(*(set(found) for found in rounds))
    return {key: sum(found[key] for found in rounds) / len(rounds) for key in sorted(common)}


def _best(accuracy: Mapping[Key, float]) -> Key:
    """Of equally good ones, that which trains least."""
    return min(accuracy, key=lambda key: (-accuracy[key], key))
