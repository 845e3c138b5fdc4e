"""The whole of the project on real data, offline: handwritten digits, a small base pretrained on printed letters.

The digits are scikit-learn's (1,797 images of 8 × 8 pixels, from UCI's Optical Recognition of Handwritten Digits). Most
of them are held out, so training has few labels, the case in which a pretrained base helps most.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from transfer import jobs
from transfer.config import Config, load_config
from transfer.dataset.shards import read_shard
from transfer.dataset.sources import write_digits
from transfer.demo import BASE_PATH
from transfer.errors import TransferError

HELD_OUT_SHOWN = 12


def run_demo(folder: Path) -> dict[str, Any]:
    """Ingest, train, evaluate, publish, reload in a new process and predict. Returns the summary.

    All files are below `folder`. Raises TransferError if a step fails.
    """
    folder = folder.absolute()
    images = folder / "digits"
    write_digits(images)
    config_path = folder / "digits.yaml"
    config_path.write_text(yaml.safe_dump(_configuration(folder, images), sort_keys=False), encoding="utf-8")
    config = load_config(config_path)

    outcome = jobs.train(config)
    scratch = jobs.train(_from_scratch(config))
    with_transfer = outcome.report.metrics.accuracy
    without = scratch.report.metrics.accuracy
    return {
        "labelled images": outcome.dataset.rows("train"),
        "held-out images": outcome.dataset.rows("test"),
        "accuracy": with_transfer,
        "accuracy from scratch": without,
        "gained by transfer": with_transfer - without,
        "model": f"{config.storage.uri}/{outcome.version.folder}" if outcome.version else None,
        "report": outcome.report_uri,
        "answers of the published model in a fresh process": _predict_held_out(config_path, outcome, folder),
    }


def _configuration(folder: Path, images: Path) -> dict[str, Any]:
    return {
        "name": "digits",
        "storage": str(folder / "storage"),
        "dataset": {"source": str(images), "validation": 0.05, "test": 0.9},
        "base": {"model": str(BASE_PATH), "image_size": 32},
        "head": {"dropout": 0.2},
        "phases": [
            {"unfreeze": 0, "epochs": 10, "learning_rate": 3.0e-3},
            {"unfreeze": 1, "epochs": 30, "learning_rate": 1.0e-3, "schedule": {"kind": "cosine"}},
        ],
        "training": {"batch_size": 16},
    }


def _from_scratch(config: Config) -> Config:
    """The same configuration with random weights instead of pretrained ones."""
    epochs = sum(phase.epochs for phase in config.phases)
    whole = config.phases[-1].model_copy(update={"unfreeze": "all", "epochs": epochs, "learning_rate": 1e-3})
    return config.model_copy(
        update={
            "name": "digits-from-scratch",
            "dataset": config.dataset.model_copy(update={"name": config.dataset_name}),
            "base": config.base.model_copy(update={"weights": "none"}),
            "phases": [whole],
            "publish": config.publish.model_copy(update={"enabled": False}),
        }
    )


def _predict_held_out(config_path: Path, outcome: jobs.TrainOutcome, folder: Path) -> list[dict[str, Any]]:
    """Write some held-out images as files, and let another process predict them with the published model."""
    held_out = folder / "held-out"
    truths: dict[str, str] = {}
    shard = outcome.dataset.shards_of("test")[0]
    for row in read_shard(outcome.run.store, shard).slice(0, HELD_OUT_SHOWN).to_pylist():
        name = row["key"].replace("/", "-")
        held_out.mkdir(exist_ok=True)
        (held_out / name).write_bytes(row["image"])
        truths[name] = outcome.dataset.classes[row["label"]]
    command = [sys.executable, "-m", "transfer", "predict", str(config_path), "--images", str(held_out), "--json"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if finished.returncode != 0:
        raise TransferError(f"The published model could not be used: {finished.stderr.strip()[-2000:]}")
    return [
        {
            "image": row["key"],
            "truth": truths[row["key"]],
            "answer": row["class_name"],
            "probability": row["confidence"],
        }
        for row in json.loads(finished.stdout)["predictions"]
    ]
