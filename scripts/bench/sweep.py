"""What a sweep over unfreeze depth and learning rate costs, against what people do without this library.

    python -m scripts.bench.sweep                                    # 1,000 JPEGs of 320 x 240, about 40 minutes
    python -m scripts.bench.sweep --images 60 --epochs 1 --rates 2 --image-size 64 --json

The space: MobileNetV2, 3 depths x 8 learning rates x 5 epochs, judged on a validation split, which is the same images
in all arms. Arms, each round in another order, each in a fresh process:

    tutorials    Ray Tune over `fit` from images with the base frozen up to the same cut, all CPUs for one trial
    keras-tuner  KerasTuner, with features computed once where a careful person can: for depth 0
    ours         `transfer sweep` on an ingested dataset of which nothing is kept
    ours-again   the same with another seed, on what the first one kept
    floor        one decode, one frozen pass for all cuts, and the trials' own epochs at the speed of one of them
    heads        the head-only trials of `ours` alone; nothing is kept
    heads-32     32 head-only trials: as many values of dropout for each learning rate as that takes
    heads-1      one of them

`tutorials-heads` are the head-only trials of `tutorials`, with its start. Every arm is measured in CPU-seconds of all
its processes (`cpu_time.py`), Ray's daemons included, and in seconds. Its start is counted apart (Ray, its processes,
all imports; the loading of the network counts as work), and so are its trials. Ratios are medians over rounds of ratios
within a round.

Parity: see `sweep_parity.py`; the bench fails where it is not met. The base has random weights, for nothing is
downloaded, and BatchNorms that saw some of the images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.common import ratio, write_jpegs
from scripts.bench.cpu_time import Usage, best_counter, run_counted
from scripts.bench.sweep_parity import parity_of
from scripts.bench.sweep_report import AIMS, KINDS, MEASURES, report
from scripts.bench.sweep_task import DROPOUT, Task

ARMS = ("tutorials", "keras-tuner", "ours", "floor", "heads", "heads-32", "heads-1")
LOWEST_RATE, HIGHEST_RATE = 1e-4, 3e-2
MANY_HEADS = 32
HIGHEST_DROPOUT = 0.6
DIFFERING_SHARE = 0.9

Outcome = dict[str, Any]
Cost = dict[str, float]


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
    print(report(result))
    if options.json:
        print(json.dumps(result))
    if result["parity"] and not result["parity"]["agree"]:
        sys.exit(1)


def one_round(task: Task, arms: list[str], round_: int) -> Iterator[tuple[str, Outcome]]:
    """Every arm once. Another one comes first each round: what runs first pays for what the others left in caches."""
    first = round_ % len(arms)
    for arm in (*arms[first:], *arms[:first]):
        print(f"round {round_ + 1}: {arm}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=task.folder) as name:
            storage = shutil.copytree(task.storage, Path(name, "storage"))
            here = replace(task, storage=str(storage), seed=2 * round_)
            if arm == "tutorials":
                outcome = run(here, arm)
                yield arm, outcome
                yield "tutorials-heads", heads_of(outcome)
            elif arm == "ours":
                yield arm, run(here, arm)
                yield "ours-again", run(replace(here, seed=2 * round_ + 1), arm)
            elif arm.startswith("heads"):
                yield arm, run(heads_only(here, arm), "ours")
            else:
                yield arm, run(here, arm)


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
    return told | outcome_of(told["costs"] if "costs" in told else parts_of(usage, told["spans"]))


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
    left_out = {"all": set(), "work": {"start"}, "trials": {"start", "extract", "rest"}}
    sums = {
        kind: {
            measure: sum(part[measure] for name, part in parts.items() if name not in without) for measure in MEASURES
        }
        for kind, without in left_out.items()
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
                **{kind: {measure: median(arm, kind, measure) for measure in MEASURES} for kind in KINDS},
                "parts": {
                    part: {measure: median(arm, "parts", part, measure) for measure in MEASURES}
                    for part in found[0]["parts"]
                },
            }
            for arm, found in outcomes.items()
        },
        "ratio": {
            pair: {kind: {measure: ratios(pair, kind, measure) for measure in MEASURES} for kind in KINDS}
            for pair in AIMS
            if set(pair.split(" / ")) <= outcomes.keys()
        },
    }


def _at(found: Any, *keys: str) -> Any:
    for key in keys:
        found = found[key]
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="the arm `tutorials` takes about 15 minutes of each")
    parser.add_argument("--rates", type=int, default=8, help="learning rates, at most 32")
    parser.add_argument("--depths", default="0,1,3", help="values of unfreeze, with commas; 0 must be one of them")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas; parity takes tutorials and ours")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
