"""Measure what the demo's base network is worth on handwritten digits, of which its pretraining saw none.

    python -m scripts.measure_demo_base                        # about 5 minutes
    python -m scripts.measure_demo_base --base /tmp/base.keras --per-class 20

For each seed a few digits of each class are drawn, and ways of learning them are compared on all the others: the head
alone on frozen features, the last block too, everything, and everything from random weights. All get the same
network, head, labels and number of steps; random weights get the best of several learning rates, chosen on the test
digits, in their favor. Heads that average the feature map and heads that flatten it are measured apart. Logistic
regression on the bare pixels stands beside them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from keras import layers
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from scripts.glyphs import IMAGE_SIZE
from transfer.demo import BASE_PATH

STEPS = 300
BATCH_SIZE = 32
SCRATCH_LEARNING_RATES = (1e-3, 3e-3, 1e-2)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits of scikit-learn, smoothly enlarged: float32 0..255 [1797, 32, 32, 3], and their classes."""
    bunch = load_digits()
    images = np.empty((len(bunch.images), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for index, small in enumerate(bunch.images):
        pixels = Image.fromarray(np.rint(small * 255 / 16).astype(np.uint8))
        images[index] = np.asarray(pixels.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
    return np.repeat(images[..., np.newaxis], 3, axis=-1), bunch.target


def split(labels: np.ndarray, *, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of `per_class` random examples of each class to learn from, and of all others."""
    order = np.random.default_rng(seed).permutation(len(labels))
    few = np.concatenate([order[labels[order] == digit][:per_class] for digit in range(10)])
    return few, np.setdiff1d(order, few)


def learn(
    base: keras.Model,
    few: tuple[np.ndarray, np.ndarray],
    rest: tuple[np.ndarray, np.ndarray],
    *,
    pooling: str,
    unfreeze: str,
    learning_rate: float,
    seed: int,
) -> float:
    """Train a head, and the layers of the base whose names start with `unfreeze`. Returns the accuracy on `rest`.

    `pooling` is `average` or `flatten`; `unfreeze` is a block's name, `all`, or empty for none.
    """
    keras.utils.set_random_seed(seed)
    for layer in base.layers:
        layer.trainable = bool(unfreeze) and (unfreeze == "all" or layer.name.startswith(unfreeze))
    pool = layers.GlobalAveragePooling2D() if pooling == "average" else layers.Flatten()
    x = layers.Dropout(0.2)(pool(base.output))
    network = keras.Model(base.input, layers.Dense(10)(x))
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 20, STEPS, warmup_target=learning_rate, warmup_steps=STEPS // 10
    )
    network.compile(
        optimizer=keras.optimizers.Adam(schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    steps_per_epoch = -(-len(few[1]) // BATCH_SIZE)
    network.fit(*few, batch_size=BATCH_SIZE, epochs=-(-STEPS // steps_per_epoch), verbose=0)
    return float(network.evaluate(*rest, batch_size=256, verbose=0)[1])


def measure(path: Path, *, per_class: int, seed: int) -> dict[str, float]:
    """Accuracy of each way of learning, on the digits that it did not learn from."""
    images, labels = digits()
    few, rest = split(labels, per_class=per_class, seed=seed)
    examples, others = (images[few], labels[few]), (images[rest], labels[rest])

    def pretrained(pooling: str, unfreeze: str, learning_rate: float) -> float:
        base = keras.saving.load_model(path)
        return learn(base, examples, others, pooling=pooling, unfreeze=unfreeze, learning_rate=learning_rate, seed=seed)

    def scratch(pooling: str) -> float:
        accuracies = []
        for rate in SCRATCH_LEARNING_RATES:
            keras.utils.set_random_seed(seed)
            base = keras.models.clone_model(keras.saving.load_model(path))  # the same layers, new random weights
            accuracies.append(
                learn(base, examples, others, pooling=pooling, unfreeze="all", learning_rate=rate, seed=seed)
            )
        return max(accuracies)

    def regression(features: np.ndarray) -> float:
        scaled = (features - features[few].mean(axis=0)) / features[few].std()
        model = LogisticRegression(C=10, max_iter=2000).fit(scaled[few], labels[few])
        return float(model.score(scaled[rest], labels[rest]))

    maps = np.asarray(keras.saving.load_model(path)(images))
    return {
        "average: frozen, regression": regression(maps.mean(axis=(1, 2))),
        "average: frozen, head": pretrained("average", "", 1e-2),
        "average: last block": pretrained("average", "block4", 1e-3),
        "average: all": pretrained("average", "all", 1e-3),
        "average: from scratch": scratch("average"),
        "flatten: frozen, regression": regression(maps.reshape(len(maps), -1)),
        "flatten: frozen, head": pretrained("flatten", "", 1e-3),
        "flatten: last block": pretrained("flatten", "block4", 1e-3),
        "flatten: from scratch": scratch("flatten"),
        "pixels: regression": regression(images[:, 2::4, 2::4, 0].reshape(len(images), -1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo's base network on a few handwritten digits.")
    parser.add_argument("--base", type=Path, default=BASE_PATH, help="the .keras file (default: %(default)s)")
    parser.add_argument("--per-class", type=int, default=10, help="labeled digits of each class (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many draws of digits (default: %(default)s)")
    options = parser.parse_args()

    results = [measure(options.base, per_class=options.per_class, seed=seed) for seed in range(options.seeds)]
    print(f"accuracy on the other digits, after {options.per_class} of each class; one column a seed, then the mean")
    for name in results[0]:
        values = [result[name] for result in results]
        print(f"{name:<28}", *(f"{value:.3f}" for value in values), f"  {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
