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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench.sweep_floor import floor
from scripts.bench.sweep_task import BATCH, Spans, Task, config_of, pooled_network, split_images, with_head


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    # Never the cluster that somebody else has running here.
    os.environ["RAY_ADDRESS"] = "local"
    task = Task(**json.loads(sys.argv[1]))
    spans = Spans()
    told = ARMS[task.arm](task, spans)
    print(json.dumps({"spans": spans.of, **told}))


def prepare(task: Task, _: Spans) -> dict[str, Any]:
    """The base, the ingested images, the same splits as class folders, and which layers each depth trains."""
    from scripts.bench.plain_keras import images_in, random_base
    from transfer.backbone.load import load_backbone
    from transfer.dataset.ingest import ingest
    from transfer.dataset.shards import read_columns
    from transfer.storage import open_store

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
    return {"rows": {split: dataset.rows(split) for split in ("train", "validation")}}


def tutorials(task: Task, spans: Spans) -> dict[str, Any]:
    """Ray Tune over `fit` from images, as in TensorFlow's tutorial, one trial after the other with all CPUs."""
    from ray import cluster_resources, tune

    from transfer.cluster import connect

    connect()
    space = {"unfreeze": tune.grid_search(task.depths), "learning_rate": tune.grid_search(task.rates)}
    with tempfile.TemporaryDirectory() as folder, spans("tune"):
        trainable = tune.with_parameters(tutorial_trial, task=task)
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": int(cluster_resources()["CPU"])}),
            param_space=space,
            tune_config=tune.TuneConfig(metric="accuracy", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    if results.errors:
        raise SystemExit(str(results.errors[0]))
    told = ("unfreeze", "learning_rate", "accuracy", "started", "ended")
    trials = [{name: {**found.config, **found.metrics}[name] for name in told} for found in results]
    # The first trial's imports are start, too: its process stays.
    spans.of["tune"] = (min(trial["started"] for trial in trials), spans.of["tune"][1])
    return {"tried": trials}


def tutorial_trial(space: dict[str, Any], task: Task) -> None:
    """One trial: the base frozen up to a cut, trained and validated on images."""
    import keras
    from ray import tune

    started = time.time()
    keras.utils.clear_session()
    keras.utils.set_random_seed(task.seed)
    pooled = pooled_network(task, space["unfreeze"])
    model = with_head(task, pooled.input, pooled.output, learning_rate=space["learning_rate"])

    class Report(keras.callbacks.Callback):
        def on_epoch_end(self, _: int, logs: dict[str, float]) -> None:
            tune.report({"accuracy": float(logs["val_accuracy"]), "started": started, "ended": time.time()})

    train, validation = (split_images(task, split, shuffle=split == "train") for split in ("train", "validation"))
    model.fit(train, validation_data=validation, epochs=task.epochs, callbacks=[Report()], verbose=0)


def keras_tuner(task: Task, spans: Spans) -> dict[str, Any]:
    """KerasTuner as a careful person uses it: features of the whole base once by `predict`, other depths by images."""
    import keras
    import keras_tuner
    import numpy as np

    train, validation = (split_images(task, split, shuffle=split == "train") for split in ("train", "validation"))
    trials: list[dict[str, Any]] = []

    @functools.cache
    def features(split: str) -> tuple[np.ndarray, np.ndarray]:
        images = split_images(task, split, shuffle=False)
        labels = np.array([images.class_names.index(Path(path).parent.name) for path in images.file_paths], np.int32)
        return pooled_network(task, 0).predict(images.map(lambda image, _: image), verbose=0), labels

    class Space(keras_tuner.HyperModel):
        def build(self, hp: Any) -> Any:
            depth, rate = hp.Choice("unfreeze", task.depths), hp.Choice("learning_rate", task.rates)
            if depth:
                pooled = pooled_network(task, depth)
                return with_head(task, pooled.input, pooled.output, learning_rate=rate)
            inputs = keras.Input(features("train")[0].shape[1:])
            return with_head(task, inputs, inputs, learning_rate=rate)

        def fit(self, hp: Any, model: Any, **kwargs: Any) -> Any:
            started = time.time()
            if hp.get("unfreeze"):
                history = model.fit(train, validation_data=validation, **kwargs)
            else:
                history = model.fit(*features("train"), validation_data=features("validation"), **kwargs)
            accuracy = history.history["val_accuracy"][-1]
            trials.append({**hp.values, "accuracy": accuracy, "started": started, "ended": time.time()})
            return history

    class Search(keras_tuner.GridSearch):
        def _configure_tensorboard_dir(self, *_: Any) -> None:
            """Nothing is logged to TensorBoard; the package would be imported all the same."""

    with tempfile.TemporaryDirectory() as folder, spans("tune"):
        tuner = Search(Space(), objective="val_accuracy", seed=task.seed, directory=folder)
        tuner.search(batch_size=BATCH, epochs=task.epochs, verbose=0)
    return {"tried": trials}


def ours(task: Task, spans: Spans) -> dict[str, Any]:
    """This library: what `transfer sweep` does between ingest and the evaluation of the winner."""
    import ray

    from transfer.cluster import connect
    from transfer.dataset.manifest import load_dataset
    from transfer.storage import open_store
    from transfer.tuning import driver

    start_hosts = driver._start_hosts  # noqa: SLF001 - measured from outside

    def start_hosts_and_import(*args: Any) -> list[Any]:
        hosts: list[Any] = start_hosts(*args)
        ray.get([host.__ray_call__.remote(import_keras) for host in hosts])
        return hosts

    # What they would do first, so that it counts as start here as in the other arms.
    driver._start_hosts = start_hosts_and_import  # noqa: SLF001
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
    "floor": floor,
}

if __name__ == "__main__":
    main()
