"""What a sweep over unfreeze depth and learning rate costs, against what people do without this library.

    python -m scripts.bench.sweep                                    # 1,000 JPEGs of 320 x 240, about 40 minutes
    python -m scripts.bench.sweep --images 60 --epochs 1 --rates 2 --image-size 64 --json

The space: MobileNetV2, 3 depths x 8 learning rates x 5 epochs, judged on a validation split, which is the same images
in all arms. Arms, each round in another order, each in a fresh process:

    tutorials    Ray Tune over `fit` from images with the base frozen up to the same cut, all CPUs for one trial
    keras-tuner  KerasTuner, with features computed once where a careful person can: for depth 0
    ours         `transfer sweep` on an ingested dataset of which nothing is kept
    ours-again   the same with another seed, on what the first one kept
    heads        the head-only trials of `ours` alone; nothing is kept
    heads-32     32 head-only trials: as many values of dropout for each learning rate as that takes
    heads-1      one of them

`tutorials-heads` are the head-only trials of `tutorials`, with its start. Every arm is measured in CPU-seconds of all
its processes (`cpu_time.py`), Ray's daemons included, and in seconds. Its start is counted apart (Ray, its processes,
all imports; the loading of the network counts as work), and so are its trials. Ratios are medians over rounds of ratios
within a round.

Parity: whether the arms find the same, within noise; the bench fails where they do not. Noise is what another seed
changes: the root mean square, over the trials of the library, of the difference between two seeds (arms `ours` and
`ours-again`). To that comes, for a single trial of accuracy p, that n images validate it: 2 p (1 - p) / n. It has three
parts, each within three standard deviations:

- each trial's validation accuracy is that of the same trial of the slow sweep;
- so is their mean over all trials, where only the noise of seeds is left, for all see the same images;
- in the slow sweep's own figures, the configuration that the library finds best is as good as its best one.

The base has random weights, for nothing is downloaded, and BatchNorms that saw some of the images.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.common import ratio, rotated, write_jpegs
from scripts.bench.cpu_time import Usage, best_counter, run_counted
from scripts.bench.sweep_plain import DROPOUT, Task

ARMS = ("tutorials", "keras-tuner", "ours", "heads", "heads-32", "heads-1")
LOWEST_RATE, HIGHEST_RATE = 1e-4, 3e-2
MANY_HEADS = 32
HIGHEST_DROPOUT = 0.6
DIFFERING_SHARE = 0.9

MEASURES = ("cpu_s", "wall_s")
LEFT_OUT = {"all": set(), "work": {"start"}, "trials": {"start", "extract", "rest"}}
"""What is counted of an arm: all of its parts, its work, its trials alone."""
AIMS = {
    "tutorials / ours": "all cpu_s >= 4",
    "tutorials-heads / heads": "all cpu_s >= 20",
    "keras-tuner / ours": "all cpu_s >= 3",
    "heads-32 / heads-1": "work wall_s < 1.5",
}
"""Ratios, and what each should be at least or at most."""

Outcome = dict[str, Any]
Cost = dict[str, float]
Key = tuple[int, float]
"""Of a trial: unfreeze and learning rate."""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="transfer-bench-") as name:
        folder = Path(name)
        write_jpegs(folder / "images", range(options.images), differing_share=DIFFERING_SHARE)
        task = Task(
            arm="",
            folder=name,
            storage=str(folder / "ingested"),
            image_size=options.image_size,
            epochs=options.epochs,
            depths=[int(depth) for depth in options.depths.split(",")],
            rates=[float(f"{rate:.3g}") for rate in np.geomspace(LOWEST_RATE, HIGHEST_RATE, options.rates)],
            dropouts=[DROPOUT],
        )
        prepared = run(task, "prepare")
        rows = prepared["rows"]
        outcomes: dict[str, list[Outcome]] = {}
        for round_ in range(options.rounds):
            for arm, outcome in one_round(task, options.arms.split(","), round_):
                outcomes.setdefault(arm, []).append(outcome)
    result = {
        "images": rows,
        "image_size": options.image_size,
        "trials": len(task.depths) * len(task.rates),
        "epochs": options.epochs,
        "rounds": options.rounds,
        "cpu_counted_by": prepared["counted_by"],
        "parity": parity_of(outcomes, rows["validation"]),
        **figures_of(outcomes),
    }
    print(json.dumps(result, indent=None if options.json else 2))
    if result["parity"] and not result["parity"]["agree"]:
        sys.exit(1)


def one_round(task: Task, arms: list[str], round_: int) -> Iterator[tuple[str, Outcome]]:
    """Every arm once."""
    for arm in rotated(arms, round_):
        print(f"round {round_ + 1}: {arm}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=task.folder) as name:
            storage = shutil.copytree(task.storage, Path(name, "storage"))
            here = replace(task, storage=str(storage), seed=2 * round_)
            outcome = run(heads_only(here, arm), "ours") if arm.startswith("heads") else run(here, arm)
            yield arm, outcome
            if arm == "tutorials":
                yield "tutorials-heads", heads_of(outcome)
            if arm == "ours":
                yield "ours-again", run(replace(here, seed=2 * round_ + 1), arm)


def heads_only(task: Task, arm: str) -> Task:
    """The head-only part of the space; more of it, or less."""
    count = {"heads": len(task.rates), "heads-32": MANY_HEADS, "heads-1": 1}[arm]
    rates = task.rates[:count]
    dropouts = (
        np.linspace(0, HIGHEST_DROPOUT, count // len(rates)).round(3).tolist() if count > len(rates) else [DROPOUT]
    )
    return replace(task, depths=[0], rates=rates, dropouts=dropouts)


def heads_of(tutorials: Outcome) -> Outcome:
    """The head-only trials of the slow sweep, and what it takes to come to the first one."""
    heads = [trial for trial in tutorials["tried"] if trial["unfreeze"] == 0]
    trained = {measure: sum(trial[measure] for trial in heads) for measure in MEASURES}
    return outcome_of({"start": tutorials["parts"]["start"], "tune": trained})


def run(task: Task, arm: str) -> Outcome:
    """Run an arm in a fresh process. Adds what its parts and its trials cost to what it tells."""
    command = [sys.executable, "-m", "scripts.bench.sweep_arms", json.dumps(asdict(replace(task, arm=arm)))]
    counter = best_counter()
    printed, usage = run_counted(command, counter)
    told: Outcome = {"counted_by": type(counter).__name__, **json.loads(printed.splitlines()[-1])}
    for trial in told.get("tried", []):
        if "started" in trial:
            trial.update(cost(usage, trial["started"], trial["ended"]))
    return told | outcome_of(parts_of(usage, told["spans"]))


def parts_of(usage: Usage, spans: dict[str, tuple[float, float]]) -> dict[str, Cost]:
    """What an arm's spans cost, what came before them, and the rest."""
    begun = min((begin for begin, _ in spans.values()), default=usage.ended)
    parts = {"start": cost(usage, usage.started, begun)}
    parts |= {name: cost(usage, begin, end) for name, (begin, end) in spans.items()}
    whole = cost(usage, usage.started, usage.ended)
    counted = {measure: sum(part[measure] for part in parts.values()) for measure in MEASURES}
    return parts | {"rest": {measure: whole[measure] - counted[measure] for measure in MEASURES}}


def cost(usage: Usage, begin: float, end: float) -> Cost:
    return {"cpu_s": usage.between(begin, end), "wall_s": end - begin}


def outcome_of(parts: dict[str, Cost]) -> Outcome:
    """Parts of an arm, and their sums: all of them, without its start, and what its trials take alone."""
    sums = {
        kind: {
            measure: sum(part[measure] for name, part in parts.items() if name not in without) for measure in MEASURES
        }
        for kind, without in LEFT_OUT.items()
    }
    return {"parts": parts, **sums}


def figures_of(outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Medians over rounds, and ratios within rounds."""

    def median(arm: str, *keys: str) -> float:
        return statistics.median(_at(outcome, *keys) for outcome in outcomes[arm])

    def ratios(pair: str, kind: str, measure: str) -> float:
        left, right = ([_at(outcome, kind, measure) for outcome in outcomes[arm]] for arm in pair.split(" / "))
        return ratio(left, right)

    return {
        "arms": {
            arm: {
                **{kind: {measure: median(arm, kind, measure) for measure in MEASURES} for kind in LEFT_OUT},
                "parts": {
                    part: {measure: median(arm, "parts", part, measure) for measure in MEASURES}
                    for part in found[0]["parts"]
                },
            }
            for arm, found in outcomes.items()
        },
        "ratio": {
            pair: {kind: {measure: ratios(pair, kind, measure) for measure in MEASURES} for kind in LEFT_OUT}
            for pair in AIMS
            if set(pair.split(" / ")) <= outcomes.keys()
        },
        "aims": AIMS,
    }


def _at(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found[key]
    return found


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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="the arm `tutorials` takes about 15 minutes of each")
    parser.add_argument("--rates", type=int, default=8, help="learning rates, at most 32")
    parser.add_argument("--depths", default="0,1,3", help="values of unfreeze, with commas; 0 must be one of them")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas; parity takes tutorials and ours")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--json", action="store_true", help="in one line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
