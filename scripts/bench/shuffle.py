"""How well the order of an epoch shuffles where the dataset is sorted by class, the worst case.

    python -m scripts.bench.shuffle                      # tables of Markdown

30,000 drawn letters of 35 classes lie class after class in 3,000 row groups. They are visited in four orders: one
global permutation (`full`); lanes, once the 64 of a window of 256 row groups, once 16 in a window of 64; and
shard by shard, with three shards in memory whose rows are permuted (`windows`, as earlier releases did).

First, what an order does to batches of 64, as means over ten epochs. Then the accuracy of a small network (two hidden
layers) on 6,000 other letters, after one epoch and after three: the mean over seeds with its standard error.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Of small matrices: beside other work on the cores, several threads are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from scripts.glyphs import CLASSES, render_many
from scripts.tables import markdown
from transfer.dataset.manifest import RowGroups, Shard
from transfer.dataset.order import Order

BATCH = 64
GROUP_ROWS, SHARD_GROUPS = 10, 60
ROW_BYTES = 100
EPOCHS = 3


def shards_of(rows: int) -> list[Shard]:
    """Shards as if images had 100 KB, of row groups of 1 MB; here an image counts as 100 bytes."""
    row_groups = RowGroups(rows=(GROUP_ROWS,) * SHARD_GROUPS, footer_size_bytes=1, footer_sha256="")
    a_shard = GROUP_ROWS * SHARD_GROUPS
    return [
        Shard(
            name=str(number),
            sha256=str(number),
            split="train",
            rows=a_shard,
            size_bytes=a_shard * ROW_BYTES,
            row_groups=row_groups,
        )
        for number in range(rows // a_shard)
    ]


def orders(rows: int) -> dict[str, Callable[[int, int], np.ndarray]]:
    """Each order as a function of seed and epoch: rows, int64 [rows]."""
    shards = shards_of(rows)

    def through(window_groups: int) -> Callable[[int, int], np.ndarray]:
        def order(seed: int, epoch: int) -> np.ndarray:
            window = window_groups * GROUP_ROWS * ROW_BYTES
            visits = Order(shards, batch_size=BATCH, window_size_bytes=window, seed=seed).epoch(epoch, own=range(BATCH))
            visited = np.concatenate([visit.rows for visit in visits])
            return visited[visited >= 0]

        return order

    def windows(seed: int, epoch: int) -> np.ndarray:
        random = np.random.default_rng([seed, epoch])
        by_shard = np.arange(rows).reshape(len(shards), -1)[random.permutation(len(shards))]
        pieces = np.array_split(by_shard, -(-len(shards) // 3))
        return np.concatenate([random.permutation(piece.ravel()) for piece in pieces])

    whole = rows // GROUP_ROWS
    return {"full": through(whole), "lanes, 64": through(256), "lanes, 16": through(64), "windows": windows}


def of_batches(order: Callable[[int, int], np.ndarray], classes: np.ndarray) -> dict[str, float]:
    """What an order does to batches, where `classes` are those of the rows as they are stored."""
    neighbors, in_batch, drift = [], [], []
    for epoch in range(10):
        visited = order(0, epoch)
        neighbors.append(np.abs(np.diff(visited)).mean() / (len(visited) / 3))
        batches = classes[visited[: len(visited) // BATCH * BATCH]].reshape(-1, BATCH)
        in_batch.append(np.mean([len(np.unique(batch)) for batch in batches]))
        tens = batches[: len(batches) // 10 * 10].reshape(-1, 10 * BATCH)
        counts = np.stack([np.bincount(ten, minlength=len(CLASSES)) for ten in tens])
        drift.append(counts.std(axis=0).mean())
    return {
        "distance of neighbors / a permutation's": float(np.mean(neighbors)),
        "classes in a batch": float(np.mean(in_batch)),
        "deviation of a class's images in ten batches": float(np.mean(drift)),
    }


def accuracies(order: Callable[[int, int], np.ndarray], train: tuple, test: tuple, seed: int) -> list[float]:
    """Accuracy after each epoch."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    dense = keras.layers.Dense
    network = keras.Sequential([dense(256, activation="relu"), dense(128, activation="relu"), dense(len(CLASSES))])
    network.build((None, train[0].shape[1]))
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step(images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, network(images))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)

    found = []
    for epoch in range(EPOCHS):
        visited = order(seed, epoch)
        for start in range(0, len(visited) - BATCH + 1, BATCH):
            rows = visited[start : start + BATCH]
            step(train[0][rows], train[1][rows])
        answers = network(test[0]).numpy().argmax(axis=1)
        found.append(float((answers == test[1]).mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    images, classes = render_many(options.rows * 6 // 5, seed=0)
    pixels = images[:, ::2, ::2, 0].reshape(len(images), -1).astype(np.float32) / 127.5 - 1
    sorted_by_class = np.argsort(classes[: options.rows], kind="stable")
    train = pixels[sorted_by_class], classes[sorted_by_class]
    test = pixels[options.rows :], classes[options.rows :]

    ways = orders(options.rows)
    rows = []
    for name, order in ways.items():
        facts = of_batches(order, train[1])
        found = np.array([accuracies(order, train, test, seed) for seed in range(options.seeds)])
        mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(options.seeds)
        cells = [f"{value:.2f}" for value in facts.values()]
        rows.append([name, *cells, *(f"{mean[e]:.4f} ± {error[e]:.4f}" for e in (0, EPOCHS - 1))])
    print(markdown(["order", *facts, "accuracy, 1 epoch", f"{EPOCHS} epochs"], rows))


if __name__ == "__main__":
    main()
