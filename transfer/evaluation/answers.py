"""What a trained model answers for the images of a split, by the fastest way that there is."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from transfer.activations.batches import KeptSplit
from transfer.activations.extract import Extractor
from transfer.activations.forward import forward_of
from transfer.activations.kept import Kept
from transfer.activations.prefix import prefix_of
from transfer.dataset.manifest import Dataset, Shard
from transfer.dataset.stored import stored_images
from transfer.progress import progress
from transfer.training.inference import InferenceWork, trace_inference
from transfer.training.model import TransferModel
from transfer.training.run import Run

HEAD_ROWS = 1024
"""Rows that a head answers at a time."""


def probabilities_of(
    run: Run, dataset: Dataset, split: str, model: TransferModel, *, exactly: bool
) -> tuple[np.ndarray, bool]:
    """What a run's trained model answers for a split, and whether the very graph that is exported answered.

    Probabilities float32 [images, classes], in stored order. `exactly` asks for that graph. Other ways round otherwise,
    within what a forward pass is checked for: the head on what is kept of a base that no phase trained, and OpenVINO.
    Raises what extraction and a forward pass raise.
    """
    shards = dataset.shards_of(split)
    if not exactly and (features := _features(run, model, shards)):
        return _by_head(model, features), False
    return _by_network(run, dataset, split, model, exactly=exactly)


def _features(run: Run, model: TransferModel, shards: list[Shard]) -> KeptSplit | None:
    """What is kept of the base for some shards, computed now where it is not; None where the base is not to be kept."""
    config = run.config
    # Features are those of merged BatchNorms, which a plain graph does not have.
    if not config.trains_head_only or config.activations.keep == "never" or config.publish.graph == "plain":
        return None
    prefix = prefix_of(model.backbone, 0, map_dtype=config.activations.map_dtype)
    # A map is larger than the image, and kept in half precision unless told otherwise.
    if prefix is None or len(prefix.shape) > 1:
        return None
    Extractor(run.store, engine=config.activations.engine).extract_all([(shards, [prefix])])
    rows = Kept(run.store, prefix).open_all(shards)
    # One may have been damaged, or removed just now.
    found = [each for each in rows if each is not None]
    return KeptSplit(shards, found) if len(found) == len(shards) else None


def _by_head(model: TransferModel, features: KeptSplit) -> np.ndarray:
    answers = []
    for start in range(0, len(features), HEAD_ROWS):
        rows = np.arange(start, min(start + HEAD_ROWS, len(features)))
        values = np.empty((len(rows), *features.shape), features.dtype)
        features.take(rows, values)
        logits = model.head(tf.constant(values), training=False)
        answers.append(tf.nn.softmax(tf.cast(logits, tf.float32)).numpy())
    return np.concatenate(answers)


def _by_network(
    run: Run, dataset: Dataset, split: str, model: TransferModel, *, exactly: bool
) -> tuple[np.ndarray, bool]:
    shards, size, rows = dataset.shards_of(split), model.backbone.image_size, dataset.rows(split)
    inference = trace_inference(model, graph=run.config.publish.graph)
    work = InferenceWork(model, inference)
    forward = None if exactly else forward_of(work, engine=run.config.activations.engine, rows=rows)
    batch_size = forward.batch_size if forward else run.config.training.batch_size
    images = (each for each, _ in stored_images(run.store, shards, image_size=size, batch_size=batch_size))
    answers = forward.map(images) if forward else map(work.plain, images)
    found = []
    with progress(f"evaluate {split}", total=rows) as advance:
        for (probabilities,) in answers:
            found.append(probabilities)
            advance(len(probabilities))
    return np.concatenate(found), exactly
