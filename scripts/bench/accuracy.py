"""How right the models are, beside plain Keras `fit` of the same network on the same images, for as many epochs.

    python -m scripts.bench.accuracy                  # signs, photographs and digits, 3 seeds: hours on 2 cores
    python -m scripts.bench.accuracy --small          # fewer and smaller images, fewer epochs
    python -m scripts.bench.accuracy --check          # `make quality`: some of the small ones, without plain Keras

EfficientNetLite0 with its ImageNet weights (the extra `demo`), or random ones; a dense head, Adam and a cosine. A row
each way of learning. Accuracies and differences are means over seeds, with 95 % intervals over the test images;
differences are paired by image. Signs and photographs are in `../shared/data`, or where TRANSFER_PHOTOGRAPHS says.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.bench.common import compiled_with_cosine
from scripts.tables import markdown
from transfer.backbone.efficientnet_lite import EfficientNetLite0
from transfer.config import Config, parse_config
from transfer.dataset.batches import stored_images
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import Dataset
from transfer.storage import open_store
from transfer.training.inference import trace_inference
from transfer.training.loop import train
from transfer.training.model import TransferModel
from transfer.training.run import Run, open_run
from transfer.training.shared_models import process_models, restore_model, untrained_model

PHOTOGRAPHS = Path(os.environ.get("TRANSFER_PHOTOGRAPHS", "../shared/data"))
EXPECTED = Path(__file__).with_suffix(".json")
BATCH, DROPOUT, NEIGHBORS = 32, 0.2, 5


@dataclass(frozen=True)
class Arm:
    """A way of learning. `rate`: the learning rate that a cosine begins with."""

    unfreeze: int | str
    rate: float
    model: str = "EfficientNetLite0"
    is_random: bool = False


SMALL_NETWORK = "small.keras"
ARMS = {
    "frozen": Arm(0, 3e-3),
    "last block": Arm(1, 1e-3),
    "last 2 blocks": Arm(2, 1e-3),
    "all blocks": Arm("all", 5e-4),
    "from scratch": Arm("all", 3e-3, is_random=True),
    "small network from scratch": Arm("all", 3e-3, model=SMALL_NETWORK, is_random=True),
}


@dataclass(frozen=True)
class Size:
    """How much is learned from, and for how long."""

    image_size: int
    per_class: int
    epochs: int
    scratch_epochs: int


WHOLE = Size(image_size=96, per_class=1000, epochs=15, scratch_epochs=60)
SMALL = Size(image_size=64, per_class=60, epochs=6, scratch_epochs=30)


def main() -> None:
    options = arguments()
    size = SMALL if options.small or options.check else WHOLE
    expected: dict[str, dict[str, list[float]]] = json.loads(EXPECTED.read_text()) if options.check else {}
    compared, worse = 0, []
    for name in (name for name in options.sets if not options.check or name in expected):
        source = source_of(name)
        if source is not None and not source.is_dir():
            print(f"{name}: not measured, {source} is not there; TRANSFER_PHOTOGRAPHS names another folder", flush=True)
            continue
        committed = expected.get(name, {})
        arms = [arm for arm in ARMS if arm in committed] if options.check else options.arms
        with tempfile.TemporaryDirectory() as folder:
            found = measured(Task(name, size, Path(folder)), arms, seeds=options.seeds, plain=not options.check)
        print(f"\n{name}\n\n{table(found)}", flush=True)
        compared += len(committed)
        accuracies = {arm: float(found[arm][0].mean()) for arm in committed}
        worse += [
            f"{name}, {arm}: {accuracy:.3f}, committed are {committed[arm][0]:.3f} to {committed[arm][1]:.3f}"
            for arm, accuracy in accuracies.items()
            if not committed[arm][0] <= accuracy <= committed[arm][1]
        ]
    if options.check:
        print(f"\n{compared} accuracies compared with {EXPECTED.name}, {len(worse)} outside of it")
        if worse or not compared:
            raise SystemExit("\n".join(worse) or "Nothing was compared: no set of images is there.")


def source_of(name: str) -> Path | None:
    """The folder of classes of a set; None for digits, which scikit-learn has."""
    return {"signs": PHOTOGRAPHS / "sign_digits", "photographs": PHOTOGRAPHS / "four_styles/photo"}.get(name)


class Task:
    """A set of images in storage, and its training and test images as arrays."""

    def __init__(self, name: str, size: Size, folder: Path) -> None:
        self.size, self._folder = size, folder
        write_images(source_of(name), folder / "images", per_class=size.per_class)
        self.small_network = folder / SMALL_NETWORK
        small_network(size.image_size).save(self.small_network)
        config = self.config(ARMS["frozen"], seed=0)
        self.store = open_store(config.storage)
        self.dataset: Dataset = ingest(config, self.store)
        self.train, self.test = (self._images(config, split) for split in ("train", "test"))

    def config(self, arm: Arm, *, seed: int) -> Config:
        """The configuration of a run."""
        phase = {
            "unfreeze": arm.unfreeze,
            "epochs": self.size.scratch_epochs if arm.is_random else self.size.epochs,
            "learning_rate": arm.rate,
            "schedule": {"kind": "cosine"},
        }
        return parse_config(
            {
                "name": "accuracy",
                "storage": str(self._folder / "storage"),
                "dataset": {"source": str(self._folder / "images"), "validation": 0.0, "test": 0.5},
                "base": {
                    "model": str(self.small_network) if arm.model == SMALL_NETWORK else arm.model,
                    "weights": "none" if arm.is_random else "imagenet",
                    "image_size": self.size.image_size,
                },
                "head": {"dropout": DROPOUT},
                "phases": [phase],
                "training": {"batch_size": BATCH, "seed": seed},
            }
        )

    def _images(self, config: Config, split: str) -> tuple[np.ndarray, np.ndarray]:
        image_input = config.image_input
        shards = self.dataset.shards_of(split)
        batches = list(stored_images(self.store, shards, image_input=image_input, batch_size=BATCH))
        return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


def write_images(source: Path | None, to: Path, *, per_class: int) -> None:
    """Link the first images of each class, or write the digits."""
    for folder in sorted(source.iterdir()) if source else []:
        (to / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:per_class]:
            (to / folder.name / file.name).symlink_to(file.resolve())
    if source is None:
        digits = load_digits()
        for label in range(10):
            (to / str(label)).mkdir(parents=True)
            for index in np.flatnonzero(digits.target == label)[:per_class]:
                small = Image.fromarray(np.rint(digits.images[index] * 255 / 16).astype(np.uint8))
                small.resize((64, 64), Image.Resampling.BICUBIC).save(to / str(label) / f"{index:04d}.png")


Rights = np.ndarray
"""For each test image the share of seeds that are right about it: float64 [images]."""


def measured(task: Task, arms: list[str], *, seeds: int, plain: bool) -> dict[str, tuple[Rights, Rights | None]]:
    """By way of learning: ours, and that of plain Keras."""
    found: dict[str, tuple[Rights, Rights | None]] = {}
    for name in arms:
        ours = over_seeds(functools.partial(of_ours, task, ARMS[name]), seeds)
        found[name] = (ours, over_seeds(functools.partial(of_plain_keras, task, ARMS[name]), seeds) if plain else None)
    model = untrained_model(*opened(task, ARMS["frozen"], seed=0))
    seen, asked = (features_of(model, images) for images, _ in (task.train, task.test))
    heads = {
        "linear probe": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)),
        f"{NEIGHBORS} nearest neighbors": KNeighborsClassifier(NEIGHBORS, weights="distance", metric="cosine"),
    }
    for name, head in heads.items():
        answers = head.fit(seen, task.train[1]).predict(asked)
        found[name] = ((answers == task.test[1]).astype(float), None)
    return found


def over_seeds(rights: Callable[..., np.ndarray], seeds: int) -> Rights:
    return np.mean([rights(seed=seed) for seed in range(seeds)], axis=0)


def opened(task: Task, arm: Arm, *, seed: int) -> tuple[Run, Dataset]:
    return open_run(task.store, task.config(arm, seed=seed), task.dataset), task.dataset


def of_ours(task: Task, arm: Arm, *, seed: int) -> np.ndarray:
    """Of each test image, whether the model of a run is right about it."""
    run, dataset = opened(task, arm, seed=seed)
    train(run, dataset, shared=process_models())
    answer = trace_inference(restore_model(run, dataset)[0], graph="merged").answer
    images, labels = task.test
    answers = [answer(tf.constant(images[at : at + BATCH])).numpy() for at in range(0, len(images), BATCH)]
    right: np.ndarray = np.concatenate(answers).argmax(axis=1) == labels
    return right


def of_plain_keras(task: Task, arm: Arm, *, seed: int) -> np.ndarray:
    """The same of a model that `fit` trains, with BatchNorms in training mode only where they start at random."""
    _, unfrozen = untrained_model(*opened(task, arm, seed=seed)).backbone.cut(arm.unfreeze)
    trained = {layer.name for layer in unfrozen.layers} if unfrozen else set()
    keras.utils.set_random_seed(seed)
    phase, (images, labels) = task.config(arm, seed=seed).phases[0], task.train
    if arm.model == SMALL_NETWORK:
        base = small_network(task.size.image_size)
    else:
        weights = None if arm.is_random else "imagenet"
        base = EfficientNetLite0(include_top=False, weights=weights, input_shape=images.shape[1:])
    for layer in base.layers:
        layer.trainable = layer.name in trained

    class InInferenceMode(keras.layers.Layer):
        """`base(x, training=False)`, which `fit` of Keras 3.15 would make `training=True` in a functional model."""

        def __init__(self) -> None:
            super().__init__()
            self.base = base

        def call(self, images: Any) -> Any:
            return self.base(images, training=False)

    inputs = keras.Input(images.shape[1:])
    pooled = keras.layers.GlobalAveragePooling2D()(base(inputs) if arm.is_random else InInferenceMode()(inputs))
    logits = keras.layers.Dense(len(task.dataset.classes))(keras.layers.Dropout(DROPOUT)(pooled))
    steps = phase.epochs * -(-len(labels) // BATCH)
    model = compiled_with_cosine(keras.Model(inputs, logits), learning_rate=phase.learning_rate, steps=steps)
    model.fit(images, labels, batch_size=BATCH, epochs=phase.epochs, verbose=0)
    answers = model.predict(task.test[0], batch_size=BATCH, verbose=0)
    right: np.ndarray = answers.argmax(axis=1) == task.test[1]
    return right


def small_network(image_size: int) -> keras.Model:
    """Four convolutions, each with a BatchNorm of momentum 0.9, with random weights."""
    layers = keras.layers
    image = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, -1)(image)
    for number, channels in enumerate((16, 32, 64, 96)):
        x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name=f"block_{number}_conv")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"block_{number}_norm")(x)
        x = layers.ReLU(name=f"block_{number}_relu")(x)
    return keras.Model(image, x)


def features_of(model: TransferModel, images: np.ndarray) -> np.ndarray:
    """Pooled features of the untrained base."""
    embed = trace_inference(model, graph="merged").embed
    return np.concatenate([embed(tf.constant(images[at : at + BATCH])).numpy() for at in range(0, len(images), BATCH)])


def table(found: dict[str, tuple[Rights, Rights | None]]) -> str:
    """A row each way of learning."""
    rows = []
    for arm, (ours, plain) in found.items():
        cells = ["", ""] if plain is None else [with_interval(plain), with_interval(ours - plain, signed=True)]
        rows.append([arm, with_interval(ours), *cells])
    images = len(next(iter(found.values()))[0])
    return markdown([f"on {images} test images", "this library", "plain Keras", "difference"], rows)


def with_interval(values: np.ndarray, *, signed: bool = False) -> str:
    """The mean, and half of its 95 % interval over the images."""
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():{'+' if signed else ''}.3f} ± {half:.3f}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["signs", "photographs", "digits"], metavar="SET")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="fewer and smaller images, fewer epochs")
    parser.add_argument("--check", action="store_true", help=f"compare with {EXPECTED.name}: what it has, small")
    return parser.parse_args()


if __name__ == "__main__":
    main()
