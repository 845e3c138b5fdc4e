"""One arm of `scripts.bench.sweep` in a process of its own: `python -m scripts.bench.sweep_arms '<task as JSON>'`.

Ends with a line of JSON: the `spans` of its parts in seconds since 1970 (`start`, from which on it works, ends where
the first of the others begins), the trials that it `tried`, and what the arm itself tells.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from scripts.bench.common import images_in, random_base
from scripts.bench.sweep_plain import BATCH, Spans, Task, keras_tuner, tutorials
from transfer.config import Config, parse_config
from transfer.dataset.manifest import load_dataset
from transfer.storage import open_store

VALIDATION = 0.2
SPLITS = ("train", "validation")


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    # Never the cluster that somebody else has running here.
    os.environ["RAY_ADDRESS"] = "local"
    task = Task(**json.loads(sys.argv[1]))
    spans = Spans()
    told = ARMS[task.arm](task, spans)
    print(json.dumps({"spans": spans.of, **told}))


def config_of(task: Task) -> Config:
    """The configuration that searches what the other arms do."""
    space = {"phases.0.unfreeze": task.depths, "phases.0.learning_rate": task.rates, "head.dropout": task.dropouts}
    phase = {"epochs": task.epochs, "learning_rate": task.rates[0], "schedule": {"kind": "cosine"}}
    return parse_config(
        {
            "name": "bench",
            "storage": task.storage,
            "dataset": {"source": str(task.images), "validation": VALIDATION, "test": 0.0},
            "base": {"model": str(task.network), "image_size": task.image_size, "preprocessing": "-1..1"},
            "head": {"dropout": task.dropouts[0]},
            "phases": [phase],
            "training": {"batch_size": BATCH, "seed": task.seed},
            "publish": {"enabled": False},
            "sweep": {"space": space, "search": "grid"},
        }
    )


def prepare(task: Task, _: Spans) -> dict[str, Any]:
    """The base, the ingested images, the same splits as class folders, and which layers each depth trains."""
    from transfer.backbone.load import load_backbone
    from transfer.dataset.ingest import ingest
    from transfer.dataset.shards import read_columns

    images = images_in(task.images, task.image_size, batch_size=BATCH, shuffle=True)
    random_base("MobileNetV2", task.image_size, images).save(task.network)
    config = config_of(task)
    store = open_store(config.storage)
    dataset = ingest(config, store)
    for shard in dataset.shards:
        for key in read_columns(store, shard, ["key"])["key"].to_pylist():
            copy = task.split(shard.split) / key
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(task.images / key, copy)
    backbone = load_backbone(config.base)
    unfrozen = {depth: backbone.cut(depth)[1] for depth in task.depths}
    names = {depth: [layer.name for layer in part.layers] if part else [] for depth, part in unfrozen.items()}
    task.unfrozen.write_text(json.dumps(names))
    return {"rows": {split: dataset.rows(split) for split in SPLITS}}


def ours(task: Task, spans: Spans) -> dict[str, Any]:
    """This library: what `transfer sweep` does between ingest and the evaluation of the winner."""
    import ray

    from transfer.runtime.cluster import connect
    from transfer.tuning import driver

    start_actors = driver._start_actors  # noqa: SLF001 - measured from outside

    def start_actors_and_import(*args: Any) -> list[Any]:
        actors: list[Any] = start_actors(*args)
        ray.get([actor.__ray_call__.remote(import_keras) for actor in actors])
        return actors

    # What they would do first, so that it counts as start here as in the other arms.
    driver._start_actors = start_actors_and_import  # noqa: SLF001
    for name in ("_extract", "_tune"):
        noted(spans, driver, name)
    connect()
    config = config_of(task)
    store = open_store(config.storage)
    result = driver.run_sweep(config, load_dataset(store, config.dataset_name), store).result
    trials = [
        {
            "unfreeze": trial.values["phases.0.unfreeze"],
            "learning_rate": trial.values["phases.0.learning_rate"],
            "accuracy": trial.value,
            "packed_with": trial.packed_with,
        }
        for trial in result.trials
    ]
    return {"tried": trials}


def import_keras(_: Any) -> None:
    """For a process of Ray to do."""
    import keras  # noqa: F401


def noted(spans: Spans, owner: Any, function: str) -> None:
    """From now on, note when that function of a module is called."""
    called = getattr(owner, function)

    @functools.wraps(called)
    def call(*args: Any, **kwargs: Any) -> Any:
        with spans(function.removeprefix("_")):
            return called(*args, **kwargs)

    setattr(owner, function, call)


ARMS: dict[str, Callable[[Task, Spans], dict[str, Any]]] = {
    "prepare": prepare,
    "tutorials": tutorials,
    "keras-tuner": keras_tuner,
    "ours": ours,
}

if __name__ == "__main__":
    main()
