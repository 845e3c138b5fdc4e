"""Whether a screen ranks networks as fine-tuning all of them does, and what both take.

    python -m scripts.bench.screen IMAGES --to FOLDER        # a table of Markdown, and Kendall's rank correlations

IMAGES has class folders. EfficientNetLite0 at several image sizes is screened with its ImageNet weights, and at the
smallest one with random weights, each at its end and at inner layers. Then each of these is trained: its head, and then
all of its blocks. Both know the same training images, and fine-tuning is judged on held-out ones.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import yaml
from scipy.stats import kendalltau

from scripts.tables import markdown
from transfer import jobs
from transfer.config import Config, parse_config, set_key
from transfer.runtime.numbers import percent
from transfer.screening.result import ScreenedCut

NETWORK = "EfficientNetLite0"


def configured(images: Path, to: Path, weights: str, sizes: list[int]) -> Config:
    """The configuration of which the screen compares sizes, with random weights only the smallest one."""
    return parse_config(
        {
            "name": f"screen-{weights}",
            "storage": str(to / "storage"),
            "dataset": {"name": "images", "source": str(images), "test": 0.4, "validation": 0.0},
            "base": {"model": NETWORK, "weights": weights, "image_size": sizes[0]},
            "phases": [
                {"unfreeze": 0, "epochs": 5, "learning_rate": 1e-2},
                {"unfreeze": "all", "epochs": 4, "learning_rate": 3e-4},
            ],
            "baselines": "none",
            "publish": {"enabled": False},
        }
    )


def fine_tuned(config: Config, cut: ScreenedCut) -> float:
    """Accuracy on held-out images of a network that was trained as a screen proposes."""
    document: dict[str, Any] = config.model_dump(mode="json")
    for setting in cut.settings:
        key, _, value = setting.partition("=")
        set_key(document, key, yaml.safe_load(value), name=setting)
    return jobs.train(parse_config(document)).report.metrics.accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64, 96, 128])
    asked = parser.parse_args()
    rows: list[tuple[str, ScreenedCut, float]] = []
    screened_s = trained_s = 0.0
    for weights, sizes in (("imagenet", asked.sizes), ("none", asked.sizes[:1])):
        config = configured(asked.images, asked.to, weights, asked.sizes)
        started = time.perf_counter()
        result, _ = jobs.screen(config, bases=[f"{NETWORK}@{size}" for size in sizes])
        screened = time.perf_counter()
        rows += [(f"{cut.title}, {weights}", cut, fine_tuned(config, cut)) for cut in result.cuts]
        screened_s += screened - started
        trained_s += time.perf_counter() - screened
    table = [
        [title, percent(cut.accuracy), percent(cut.neighbours), f"{cut.logme:.3f}", percent(accuracy)]
        for title, cut, accuracy in sorted(rows, key=lambda row: -row[2])
    ]
    print(markdown(["network", "linear probe", "neighbors", "LogME", "fine-tuned, held out"], table))
    accuracies = [accuracy for _, _, accuracy in rows]
    for name in ("accuracy", "neighbours", "logme"):
        found = kendalltau([getattr(cut, name) for _, cut, _ in rows], accuracies)
        print(f"Kendall's tau of {name}: {found.statistic:.2f} (p = {found.pvalue:.2g})")
    print(f"The screens took {screened_s:.0f} s, training {trained_s:.0f} s: {screened_s / trained_s:.3f}")


if __name__ == "__main__":
    main()
