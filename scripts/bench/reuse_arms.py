"""One arm of `scripts.bench.reuse` in a process of its own: `python -m scripts.bench.reuse_arms '<task as JSON>'`.

Ends with a line of JSON: `seconds` by phase, when the arm `ended`, and what the arm itself tells. The
phases `load` (imports and the network) and `build` (compiling the forward pass) are its start, all others its work.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.common import CLASSES, Stopwatch, compiled_with_cosine, images_in, random_base
from transfer.config import Config, parse_config

BATCH = 32
DROPOUT = 0.2


@dataclass(frozen=True)
class Task:
    """What an arm is to do."""

    arm: str
    images: str
    """Folder of class folders."""
    network: str
    """The `.keras` file of the base; made by the arm `prepare`."""
    application: str
    """The network's name in keras.applications."""
    image_size: int
    epochs: int
    learning_rate: float
    storage: str
    shard_size_bytes: int
    heads: str
    """Folder where an arm leaves its trained head, which the arm `evaluate` finds there."""
    head: str = ""
    """Name of the head, without a suffix."""


def config_of(task: Task) -> Config:
    """The configuration that does what the other arms do: no augmentation, nothing held out, a head for all epochs."""
    held_out = {"validation": 0.0, "test": 0.0}
    return parse_config(
        {
            "name": "bench",
            "storage": task.storage,
            "dataset": {"source": task.images, "shard_size_bytes": task.shard_size_bytes, **held_out},
            "base": {"model": task.network, "image_size": task.image_size, "preprocessing": "-1..1"},
            "head": {"dropout": DROPOUT},
            "phases": [{"epochs": task.epochs, "learning_rate": task.learning_rate, "schedule": {"kind": "cosine"}}],
            "training": {"batch_size": BATCH},
            "publish": {"enabled": False},
        }
    )


def image_dataset(task: Task, *, shuffle: bool) -> Any:
    """Images as the tutorial reads them."""
    return images_in(Path(task.images), task.image_size, batch_size=BATCH, shuffle=shuffle)


def paths_of(task: Task) -> list[str]:
    return sorted(map(str, Path(task.images).rglob("*.jpg")))


def labels_of(images: Any) -> np.ndarray:
    """Labels of a dataset that is not shuffled, int32 [images]."""
    return np.array([images.class_names.index(Path(path).parent.name) for path in images.file_paths], np.int32)


def decoded(paths: list[str], size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Images from files with tf.data and nothing else, float32 [batch, size, size, 3]."""
    import tensorflow as tf

    def load(path: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (size, size))

    images = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def pooled_network(task: Task) -> Any:
    """The base in plain Keras, from pixels to pooled features."""
    import keras

    base = keras.models.load_model(task.network, compile=False)
    inputs = keras.Input((task.image_size, task.image_size, 3))
    features = base(keras.layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(features))


def compiled(task: Task, model: Any) -> Any:
    """The model, to be trained as this library does it in the other arms."""
    return compiled_with_cosine(
        model, learning_rate=task.learning_rate, steps=task.epochs * -(-len(paths_of(task)) // BATCH)
    )


def save_head(task: Task, kernel: np.ndarray, bias: np.ndarray) -> None:
    np.savez(Path(task.heads) / f"{task.head}.npz", kernel=kernel, bias=bias)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    task = Task(**json.loads(sys.argv[1]))
    watch = Stopwatch()
    told = ARMS[task.arm](task, watch)
    print(json.dumps({"seconds": watch.seconds, "ended": watch.ended, **told}))


def tutorial(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """What TensorFlow's tutorial on transfer learning does: `fit` over images, the base frozen."""
    with watch("load"):
        import keras

        base = keras.models.load_model(task.network, compile=False)
        base.trainable = False
        inputs = keras.Input((task.image_size, task.image_size, 3))
        features = base(keras.layers.Rescaling(1 / 127.5, -1)(inputs), training=False)
        features = keras.layers.GlobalAveragePooling2D()(features)
        outputs = keras.layers.Dense(CLASSES)(keras.layers.Dropout(DROPOUT)(features))
        model = compiled(task, keras.Model(inputs, outputs))
    with watch("list files"):
        images = image_dataset(task, shuffle=True)
    with watch("build"):
        # The first step compiles the whole training step; what it trained is undone.
        variables = [*model.trainable_variables, *model.optimizer.variables]
        before = [variable.numpy() for variable in variables]
        model.fit(images.take(1), verbose=0)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
    with watch("train"):
        model.fit(images, epochs=task.epochs, verbose=0)
    save_head(task, *model.layers[-1].get_weights())
    return {}


def careful(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """What a careful person writes: features once by `predict`, then `fit` of a head on arrays."""
    with watch("load"):
        import keras

        extractor = pooled_network(task)
        head = compiled(
            task,
            keras.Sequential(
                [keras.Input(extractor.output_shape[1:]), keras.layers.Dropout(DROPOUT), keras.layers.Dense(CLASSES)]
            ),
        )
    with watch("list files"):
        images = image_dataset(task, shuffle=False)
        labels = labels_of(images)
        pixels = images.map(lambda image, _: image)
    with watch("build"):
        extractor.predict(pixels.take(1), verbose=0)
    with watch("forward"):
        features = extractor.predict(pixels, verbose=0)
    with watch("train"):
        head.fit(features, labels, batch_size=BATCH, epochs=task.epochs, verbose=0)
    save_head(task, *head.layers[-1].get_weights())
    return {}


def bare(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """One pass over all images with this project's forward pass, and nothing else: its outputs are thrown away."""
    with watch("load"):
        from transfer.backbone.backbone import pooled
        from transfer.backbone.load import load_backbone
        from transfer.features.forward import build_forward
        from transfer.features.frozen import frozen_part_of

        frozen_part = frozen_part_of(pooled(load_backbone(config_of(task).base), "average"), 0, map_dtype="float32")
    with watch("list files"):
        paths = paths_of(task)
    with watch("build"):
        forward = build_forward([frozen_part])
    with watch("forward"):
        for _ in forward.map(decoded(paths, task.image_size, forward.batch_size)):
            pass
    return {"engine": forward.engine}


def ours(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """This library, in this process: what `transfer train` does between ingest and evaluation."""
    with watch("load"):
        from transfer.dataset.manifest import load_dataset
        from transfer.features import extract
        from transfer.features.forward import Forward
        from transfer.features.layout import Extraction
        from transfer.storage import open_store
        from transfer.training import loop
        from transfer.training.feature_plan import FeaturePlan
        from transfer.training.run import open_run
        from transfer.training.shared_models import SharedModels
        from transfer.training.step import create_strategy

        extractions: list[Extraction] = []
        forwards: list[Forward] = []
        note_results(FeaturePlan, "extract", extractions)
        note_results(extract, "build_forward", forwards)
        watch.watch(extract, "build_forward", "build")
        watch.watch(SharedModels, "model", "load")
    with watch("work"):
        config = config_of(task)
        store = open_store(config.storage)
        dataset = load_dataset(store, config.dataset_name)
        run = open_run(store, config, dataset)
        model = loop.train(run, dataset, shared=SharedModels(create_strategy()))
    save_head(task, *model.head.get_layer("logits").get_weights())
    (extraction,) = extractions
    # Asked for at the end: OpenVINO gives way to TensorFlow when it turns out to differ too much.
    engine = forwards[-1].engine if forwards else None
    return {"extraction": asdict(extraction), "engine": engine}


def note_results(owner: Any, attribute: str, results: list[Any]) -> None:
    """From now on, note what a module's or class's function returns."""
    function = getattr(owner, attribute)

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    setattr(owner, attribute, noted)


def ingest(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """Bring the images into storage."""
    with watch("load"):
        from transfer.dataset.ingest import ingest as ingest_dataset
        from transfer.storage import open_store
    with watch("ingest"):
        config = config_of(task)
        dataset = ingest_dataset(config, open_store(config.storage))
    return {"images": dataset.rows("train")}


def prepare(task: Task, _: Stopwatch) -> dict[str, Any]:
    """The base."""
    random_base(task.application, task.image_size, image_dataset(task, shuffle=True)).save(task.network)
    return {}


def evaluate(task: Task, _: Stopwatch) -> dict[str, Any]:
    """Accuracy of every head on all images, behind the plain Keras base."""
    images = image_dataset(task, shuffle=False)
    labels = labels_of(images)
    features = pooled_network(task).predict(images.map(lambda image, _: image), verbose=0)
    accuracy = {}
    for path in sorted(Path(task.heads).glob("*.npz")):
        with np.load(path) as head:
            answers = np.argmax(features @ head["kernel"] + head["bias"], axis=-1)
        accuracy[path.stem] = float(np.mean(answers == labels))
    return {"accuracy": accuracy}


ARMS: dict[str, Callable[[Task, Stopwatch], dict[str, Any]]] = {
    "tutorial": tutorial,
    "careful": careful,
    "bare": bare,
    "ours": ours,
    "ingest": ingest,
    "prepare": prepare,
    "evaluate": evaluate,
}

if __name__ == "__main__":
    main()
