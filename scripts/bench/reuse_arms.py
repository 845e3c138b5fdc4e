"""One arm of `scripts.bench.reuse` in a process of its own: `python -m scripts.bench.reuse_arms '<task as JSON>'`.

Ends with a line of JSON: `seconds` by phase, when the arm `ended`, its peak memory, and what the arm itself tells. The
phases `load` (imports and the network) and `build` (compiling the forward pass) are its start, all others its work.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.common import CLASSES
from scripts.bench.plain_keras import random_base
from scripts.bench.reuse_task import (
    BATCH,
    DROPOUT,
    Task,
    compiled,
    config_of,
    decoded,
    image_dataset,
    labels_of,
    paths_of,
    pooled_network,
    save_head,
)
from scripts.bench.stopwatch import PeakMemory, Stopwatch


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    task = Task(**json.loads(sys.argv[1]))
    watch, memory = Stopwatch(), PeakMemory()
    told = ARMS[task.arm](task, watch)
    print(json.dumps({"seconds": watch.seconds, "ended": watch.ended, "memory_mib": memory.stop(), **told}))


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
        from transfer.activations.forward import build_forward
        from transfer.activations.prefix import prefix_of
        from transfer.backbone.load import load_backbone
        from transfer.backbone.pooling import pooled

        prefix = prefix_of(pooled(load_backbone(config_of(task).base), "average"), 0, map_dtype="float32")
    with watch("list files"):
        paths = paths_of(task)
    with watch("build"):
        forward = build_forward([prefix], rows=len(paths))
    with watch("forward"):
        for _ in forward.map(decoded(paths, task.image_size, forward.batch_size)):
            pass
    return {"engine": forward.engine}


def bare_openvino(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """The same with OpenVINO alone, on the Keras model as it is."""
    with watch("load"):
        # OpenVINO reports conversions to Google Analytics if it finds this package; None says that there is none.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino
        import tensorflow as tf

        network = pooled_network(task)
    with watch("list files"):
        paths = paths_of(task)
    with watch("build"):
        shape = [BATCH, task.image_size, task.image_size, 3]
        function = tf.function(partial(network, training=False))
        model = openvino.convert_model(function.get_concrete_function(tf.TensorSpec(shape, tf.float32)))
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    with watch("forward"):
        for batch in decoded(paths, task.image_size, BATCH):
            rows = np.resize(batch, shape) if len(batch) < BATCH else batch
            request.infer([rows], share_inputs=True)
    return {"engine": "openvino"}


def ours(task: Task, watch: Stopwatch) -> dict[str, Any]:
    """This library, in this process: what `transfer train` does between ingest and evaluation."""
    with watch("load"):
        from transfer.activations import extract, prefix
        from transfer.activations.forward import Forward
        from transfer.activations.request import Extraction
        from transfer.dataset.manifest import load_dataset
        from transfer.storage import open_store
        from transfer.training import loop
        from transfer.training.checkpoints import Checkpoints
        from transfer.training.inputs import Inputs
        from transfer.training.run import open_run
        from transfer.training.strategy import create_strategy
        from transfer.training.workbench import Workbench

        extractions: list[Extraction] = []
        extract_inputs = Inputs.extract

        def noted(inputs: Inputs) -> Extraction:
            extractions.append(extract_inputs(inputs))
            return extractions[-1]

        Inputs.extract = noted
        forwards: list[Forward] = []
        build_forward = extract.build_forward

        def noted_forward(*args: Any, **kwargs: Any) -> Forward:
            forwards.append(build_forward(*args, **kwargs))
            return forwards[-1]

        extract.build_forward = noted_forward
        watch.watch(extract, "build_forward", "build")
        watch.watch(Workbench, "model", "load")
        watch.watch(prefix, "network_digest", "digest")
        watch.watch(Inputs, "_choose", "choose")
        watch.watch(Inputs, "extract", "extract")
        watch.watch(loop.Training, "next_epoch", "train")
        watch.watch(Checkpoints, "save", "checkpoints")
        watch.watch(loop, "write_events", "checkpoints")
    epochs_s: list[float] = []
    with watch("rest"):
        config = config_of(task)
        store = open_store(config.storage)
        dataset = load_dataset(store, config.dataset_name)
        run = open_run(store, config, dataset)
        workbench = Workbench(create_strategy())
        model = loop.train(run, dataset, workbench=workbench, on_epoch=lambda row: epochs_s.append(row.seconds))
    save_head(task, *model.head.get_layer("logits").get_weights())
    (extraction,) = extractions
    # Asked for at the end: OpenVINO gives way to TensorFlow when it turns out to differ too much.
    engine = forwards[-1].engine if forwards else None
    return {"extraction": asdict(extraction), "epochs_s": epochs_s, "engine": engine}


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
    "bare-openvino": bare_openvino,
    "ours": ours,
    "ingest": ingest,
    "prepare": prepare,
    "evaluate": evaluate,
}

if __name__ == "__main__":
    main()
