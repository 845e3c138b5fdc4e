"""A store with a dataset version, a run on it, and published versions that answer, without any training.

The models are as small as a SavedModel with the right signature can be: they tell gray images apart by brightness.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from tests.contenders import heads
from tests.published import add_version, first_version, pretrained, provenance_of
from transfer.config import parse_config
from transfer.dataset.manifest import dataset_log
from transfer.dataset.shards import write_shard
from transfer.dataset.splits import SPLITS, split_indices
from transfer.registry.compare_versions import compare_versions
from transfer.storage import open_store
from transfer.training.run import open_run

CLASSES = ["dark", "bright", "gray"]
CENTERS = {"dark": 40.0, "bright": 220.0, "gray": 130.0}
IMAGES = 150


class Brightness(tf.Module):
    """Answers with the class whose center is nearest to an image's mean."""

    def __init__(self, centers):
        super().__init__()
        self.centers = tf.Variable(centers, dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        def mean(encoded):
            return tf.reduce_mean(tf.cast(tf.io.decode_png(encoded, channels=1), tf.float32))

        means = tf.map_fn(mean, image_bytes, fn_output_signature=tf.float32)
        return {"probabilities": tf.nn.softmax(-tf.abs(means[:, None] - self.centers) / 20)}


def png(pixels):
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def some_images(seed=0):
    """Gray images of each class in turns: rows as shards hold them, with their brightness beside."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(IMAGES):
        label = number % 3
        pixels = generator.normal(CENTERS[CLASSES[label]] + generator.normal(0, 30), 5, (8, 8)).clip(0, 255)
        image = png(pixels.astype(np.uint8))
        digest = hashlib.sha256(image).hexdigest()
        rows.append({"key": f"{number}.png", "image": image, "label": label, "sha256": digest, "width": 8, "height": 8})
    return sorted(rows, key=lambda row: row["sha256"])


def brightness(row):
    return np.asarray(Image.open(io.BytesIO(row["image"])), np.float64).mean()


class World:
    """A store with a dataset version, a run on it, and versions of models."""

    def __init__(self, folder, *, test, validation):
        dataset = {"source": "digits", "test": test, "validation": validation}
        self.config = parse_config(
            {"name": "shades", "storage": str(folder), "dataset": dataset, "base": {"model": "MobileNetV2"}}
        )
        self.store = open_store(self.config.storage)
        self.rows = some_images()
        splits = split_indices(heads([row["sha256"] for row in self.rows]), test=test, validation=validation)
        self.splits = [SPLITS[split] for split in splits]
        shards = []
        for split in SPLITS:
            rows = self.of(split)
            # Two shards, so that order between them counts, and none without rows.
            shards += [write_shard(self.store, part, split=split) for part in (rows[:20], rows[20:]) if part]
        self.dataset = first_version("shades", CLASSES, shards=shards)
        dataset_log(self.store, "shades").append(self.dataset.model_dump(mode="json"))
        self.run = open_run(self.store, self.config, self.dataset)

    def of(self, split):
        return [row for row, its in zip(self.rows, self.splits, strict=True) if its == split]

    def publish(self, classes, centers, *, dataset="shades/00000001", **shares):
        """A version; `shares` of test and validation that it was trained with are those of the world unless given.

        `dataset`: None for a pretrained classifier as it is.
        """
        model = Brightness(centers)
        config = {"dataset": {**self.config.dataset.model_dump(mode="json"), **shares}}
        provenance = pretrained(config=config)
        if dataset is not None:
            provenance = provenance_of(f"run-of-{len(classes)}", dataset, accuracy=0.5, loss=1.0, config=config)
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(model, folder, signatures={"serving_default": model.serve})
            return add_version(self.store, "shades", Path(folder), classes=list(classes), provenance=provenance)

    def compare(self, champion, challenger):
        return compare_versions(
            self.config,
            self.store,
            self.dataset,
            champion=champion and champion.number,
            challenger=challenger.number,
        )
