"""The arms of `scripts.bench.sweep` that people write without this library, and what an arm is told."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.common import CLASSES, compiled_with_cosine, images_in

BATCH = 32
DROPOUT = 0.2


@dataclass(frozen=True)
class Task:
    """What an arm is to do."""

    arm: str
    folder: str
    """Holds the images, and what the arm `prepare` makes of them."""
    storage: str
    image_size: int
    epochs: int
    depths: list[int]
    rates: list[float]
    dropouts: list[float]
    """Those of the head that the library searches, too; all other arms know the first one only."""
    seed: int = 0

    @property
    def images(self) -> Path:
        """Class folders."""
        return Path(self.folder, "images")

    def split(self, name: str) -> Path:
        """Class folders of what the library put into that split."""
        return Path(self.folder, "splits", name)

    @property
    def network(self) -> Path:
        """The base."""
        return Path(self.folder, "MobileNetV2.keras")

    @property
    def unfrozen(self) -> Path:
        """The names of the layers that each depth trains, as JSON."""
        return Path(self.folder, "unfrozen.json")


class Spans:
    """When something began and when it ended, in seconds since 1970."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[float, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Note the block."""
        started = time.time()
        try:
            yield
        finally:
            self.of[name] = (started, time.time())


def split_images(task: Task, split: str, *, shuffle: bool) -> Any:
    """Images of a split as the tutorials read them."""
    return images_in(task.split(split), task.image_size, batch_size=BATCH, shuffle=shuffle)


def pooled_network(task: Task, depth: int) -> Any:
    """The base in plain Keras, from pixels to pooled features, frozen up to where the library freezes it."""
    import keras

    base = keras.models.load_model(task.network, compile=False)
    unfrozen = json.loads(task.unfrozen.read_text())[str(depth)]
    for layer in base.layers:
        layer.trainable = layer.name in unfrozen

    class InInferenceMode(keras.layers.Layer):
        """The tutorial's `base(x, training=False)`, as its authors meant it.

        In a functional model the `fit` of Keras 3.15 makes that `training=True` again: BatchNorms that are not frozen
        would use the statistics of batches, and validate badly.
        """

        def __init__(self) -> None:
            super().__init__()
            self.base = base

        def call(self, images: Any) -> Any:
            return self.base(images, training=False)

    inputs = keras.Input((task.image_size, task.image_size, 3))
    features = InInferenceMode()(keras.layers.Rescaling(1 / 127.5, -1)(inputs))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(features))


def with_head(task: Task, inputs: Any, features: Any, *, learning_rate: float) -> Any:
    """The model from inputs to logits, ready to be trained."""
    import keras

    outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(task.dropouts[0])(features))
    rows = sum(1 for _ in task.split("train").rglob("*.jpg"))
    steps = task.epochs * -(-rows // BATCH)
    return compiled_with_cosine(keras.Model(inputs, outputs), learning_rate=learning_rate, steps=steps)


def tutorials(task: Task, spans: Spans) -> dict[str, Any]:
    """Ray Tune over `fit` from images, as in TensorFlow's tutorial, one trial after the other with all CPUs."""
    from ray import cluster_resources, tune

    from transfer.runtime.cluster import connect

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
