"""How fast a head is trained on a frozen base, against what people do without this library.

    python -m scripts.bench.reuse                                       # 1,000 JPEGs of 320 x 240, about an hour
    python -m scripts.bench.reuse --images 60 --epochs 2 --rounds 1 --networks MobileNetV2 --json

Arms, each round in another order, each in a fresh process:

    tutorial    `fit` over images with the base frozen, as in TensorFlow's tutorial
    careful     features once by `predict`, then `fit` of the head on arrays
    bare        one pass of this project's forward pass over decoded files, outputs thrown away
    ours-cold   this library on an ingested dataset of which nothing is kept
    ours-warm   another run, with another learning rate, on what the first one kept; the images are hidden from it
    ours-grown  the same run again after the dataset has grown by 5 %

Start (process, imports, loading the network, compiling its forward pass) is counted apart from work in every arm;
ratios are given without and with it. They are medians over rounds of ratios within a round. Ingest is timed apart.
Every head is evaluated in the same way, in plain Keras on all images; the bench fails where accuracies differ by more
than 2 points and three standard errors (after fewer than ten epochs they may: the heads are not done then). The base
has random weights, for nothing is downloaded, and BatchNorms that saw some of the images.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.bench.common import last_json, ratio, rotated, write_jpegs
from scripts.bench.reuse_arms import Task

NETWORKS = ("MobileNetV2", "ResNet50")
LEARNING_RATE = 3e-3
DIFFERING_SHARE = 0.97
GROWTH = 0.05
SHARD_SIZE_BYTES = 64 * 1024**2
ARMS = ("tutorial", "careful", "bare", "ours")
AIMS = {
    "tutorial / ours-cold": ">= 15",
    "careful / ours-cold": ">= 2",
    "ours-cold / bare": "<= 1.25",
    "ours-warm / ours-cold": "no forward pass",
    "ours-grown / ours-cold": "<= 0.08",
}
"""Ratios, and what each should be at least or at most."""
START = ("load", "build")
EXTRACTION = ("input_s", "forward_s", "write_s")

Outcome = dict[str, Any]


def main() -> None:
    options = arguments()
    networks = options.networks.split(",")
    with tempfile.TemporaryDirectory(prefix="transfer-bench-") as name:
        folder = Path(name)
        grown = write_dataset(folder, options.images)
        result = {
            "images": options.images,
            "images_grown": grown,
            "epochs": options.epochs,
            "rounds": options.rounds,
            "image_size": options.image_size,
            "networks": {network: measure(folder, network, options) for network in networks},
            "aims": AIMS,
        }
    print(json.dumps(result, indent=None if options.json else 2))
    if not all(figures["parity"]["agree"] for figures in result["networks"].values()):
        sys.exit(1)


def write_dataset(folder: Path, count: int) -> int:
    """Images for all arms, and the same folder grown by some more; returns how many those are together."""
    grown = count + max(round(count * GROWTH), 1)
    write_jpegs(folder / "images", range(count), differing_share=DIFFERING_SHARE)
    shutil.copytree(folder / "images", folder / "images-grown")
    write_jpegs(folder / "images-grown", range(count, grown), differing_share=DIFFERING_SHARE)
    return grown


def measure(folder: Path, network: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of a network."""
    here = folder / network
    (here / "heads").mkdir(parents=True)
    task = Task(
        arm="",
        images=str(folder / "images"),
        network=str(here / f"{network}.keras"),
        application=network,
        image_size=options.image_size,
        epochs=options.epochs,
        learning_rate=LEARNING_RATE,
        storage=str(here / "ingested"),
        shard_size_bytes=SHARD_SIZE_BYTES,
        heads=str(here / "heads"),
    )
    run(task, "prepare")
    outcomes = {"ingest": [run(task, "ingest")]}
    for round_ in range(options.rounds):
        for name, outcome in one_round(task, round_):
            outcomes.setdefault(name, []).append(outcome)
    accuracy = run(task, "evaluate")["accuracy"]
    return figures_of(outcomes, parity_of(accuracy, options.images))


def one_round(task: Task, round_: int) -> Iterator[tuple[str, Outcome]]:
    """Every arm once."""
    for arm in rotated(ARMS, round_):
        print(f"{task.application}, round {round_ + 1}: {arm}", file=sys.stderr)
        if arm == "ours":
            yield from ours(task, round_)
        else:
            yield arm, run(task, arm, head=f"{arm} {round_}")


def ours(task: Task, round_: int) -> Iterator[tuple[str, Outcome]]:
    """Cold, warm and grown, one after the other in a storage of their own."""
    storage = f"{task.storage}-{round_}"
    shutil.copytree(task.storage, storage)
    task = replace(task, storage=storage)
    yield "ours-cold", run(task, "ours", head=f"ours-cold {round_}")
    with hidden(Path(storage) / "shards"):
        warm = run(replace(task, learning_rate=1.5 * task.learning_rate), "ours", head=f"ours-warm {round_}")
    if warm["extraction"]["images"]:
        raise SystemExit(f"the warm run sent {warm['extraction']['images']} images through the frozen part")
    yield "ours-warm", warm
    more = replace(task, images=f"{task.images}-grown")
    yield "ingest-grown", run(more, "ingest")
    yield "ours-grown", run(more, "ours", head=f"ours-grown {round_}")
    shutil.rmtree(storage)


@contextmanager
def hidden(folder: Path) -> Iterator[None]:
    """Whoever reads an image meanwhile fails."""
    away = folder.rename(folder.with_name(f"{folder.name}-hidden"))
    try:
        yield
    finally:
        away.rename(folder)


def run(task: Task, arm: str, *, head: str = "") -> Outcome:
    """Run an arm in a fresh process. Adds `work_s`, `start_s` (of it `build_s`), and `total_s`, which is both."""
    started = time.time()
    outcome: Outcome = last_json("reuse_arms", asdict(replace(task, arm=arm, head=head)))
    outcome["total_s"] = outcome["ended"] - started
    outcome["work_s"] = sum(seconds for phase, seconds in outcome["seconds"].items() if phase not in START)
    outcome["start_s"] = outcome["total_s"] - outcome["work_s"]
    outcome["build_s"] = outcome["seconds"].get("build", 0.0)
    return outcome


def parity_of(accuracy: dict[str, float], images: int) -> dict[str, Any]:
    """Whether the heads of all arms and rounds answer equally well. Their first weights and their order differ."""
    by_arm: dict[str, list[float]] = {}
    for head, value in accuracy.items():
        by_arm.setdefault(head.split()[0], []).append(value)
    medians = {arm: statistics.median(values) for arm, values in by_arm.items()}
    middle = statistics.median(medians.values())
    tolerance = 0.02 + 3 * (middle * (1 - middle) / images) ** 0.5
    spread = max(accuracy.values()) - min(accuracy.values())
    return {"accuracy": medians, "spread": spread, "tolerance": tolerance, "agree": spread <= tolerance}


def figures_of(outcomes: dict[str, list[Outcome]], parity: dict[str, Any]) -> dict[str, Any]:
    """Medians over rounds, and ratios within rounds."""
    seconds = ("work_s", "start_s", "build_s", "total_s")
    values = {key: {arm: [outcome[key] for outcome in found] for arm, found in outcomes.items()} for key in seconds}
    extraction = {
        arm: [sum(outcome["extraction"][part] for part in EXTRACTION) for outcome in outcomes[arm]]
        for arm in ("ours-cold", "ours-grown")
    }

    def ratios(values: dict[str, list[float]]) -> dict[str, float]:
        return {pair: ratio(*(values[arm] for arm in pair.split(" / "))) for pair in AIMS}

    return {
        "parity": parity,
        "engine": {arm: sorted({outcome["engine"] for outcome in outcomes[arm]}) for arm in ("ours-cold", "bare")},
        **{key: {arm: statistics.median(found) for arm, found in arms.items()} for key, arms in values.items()},
        "ratio": ratios(values["work_s"]),
        "ratio_with_start": ratios(values["total_s"]),
        "ratio_of_extraction": {"ours-grown / ours-cold": ratio(extraction["ours-grown"], extraction["ours-cold"])},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names in keras.applications, with commas")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--json", action="store_true", help="in one line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
