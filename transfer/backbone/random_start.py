"""The base of a run, ready to be used: a network with random weights first gets statistics for its BatchNorms.

With means 0 and variances 1, as Keras builds them, the answers of each layer would shrink: behind fifty layers they are
1e-13 for every image. So the statistics are estimated once, on some images of the training split, before the network is
digested. They are stored, because another machine would round them differently, and the digest covers them.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import closing, suppress

import numpy as np
import tensorflow as tf
from pydantic import Base64Bytes, BaseModel, ConfigDict

from transfer.backbone.backbone import Backbone
from transfer.backbone.batch_norms import estimate_statistics, statistics_of
from transfer.backbone.load import build_backbone
from transfer.catalog import layout
from transfer.config import Config
from transfer.dataset.batches import stored_images
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import AlreadyExistsError, CorruptObjectError
from transfer.storage import Log, Store

IMAGES = 128
"""Images on which statistics are estimated; all of them, if there are fewer."""


class _Statistics(BaseModel):
    """The stored entry: the values of `statistics_of` in its order, each as float32, little-endian, in base64."""

    model_config = ConfigDict(frozen=True)

    values: tuple[Base64Bytes, ...]


def base_for(config: Config, store: Store, dataset: Dataset) -> Backbone:
    """Load the base of a configuration as `build_backbone` does, with statistics if its weights are random.

    Raises what `build_backbone` raises, CorruptObjectError, ObjectNotFoundError, StorageError.
    """
    backbone = build_backbone(config)
    if backbone.starts_random:
        _take(backbone, _stored_statistics(backbone, store, shards_of_sample(dataset)))
    return backbone


def shards_of_sample(dataset: Dataset) -> list[Shard]:
    """The first shards of the training split that have enough images. A shard's images are in random order.

    A later version of the dataset usually begins with the same shards. It then has the same statistics, and the cached
    features of its images are found again.
    """
    shards, rows = list[Shard](), 0
    for shard in dataset.shards_of("train"):
        if rows < IMAGES:
            shards.append(shard)
            rows += shard.rows
    return shards


def _stored_statistics(backbone: Backbone, store: Store, shards: list[Shard]) -> _Statistics:
    """The statistics of a network on the sample in some shards: stored ones, or estimated and stored now."""
    of = "\n".join([backbone.digest(), *(shard.sha256 for shard in shards)])
    log = Log(store, layout.statistics_log(hashlib.sha256(of.encode()).hexdigest()))
    if not log.newest_number():
        estimate_statistics(backbone.network, backbone.preprocess(sample(backbone, store, shards)))
        values = [np.asarray(variable).astype("<f4").tobytes() for variable in statistics_of(backbone.network)]
        # If another process is first, its statistics count.
        with suppress(AlreadyExistsError):
            log.append({"values": [base64.b64encode(value).decode() for value in values]}, number=1)
    return log.read_as(_Statistics, 1)


def sample(backbone: Backbone, store: Store, shards: list[Shard]) -> tf.Tensor:
    """The first images of some shards: float32 [n, height, width, channels] in 0..255."""
    with closing(stored_images(store, shards, image_input=backbone.image_input, batch_size=IMAGES)) as batches:
        # A batch runs on from one shard to the next, so the first one has all.
        images, _ = next(batches)
    return tf.constant(images)


def _take(backbone: Backbone, stored: _Statistics) -> None:
    """Put stored statistics into the network. Raises CorruptObjectError if they do not fit."""
    variables = statistics_of(backbone.network)
    channels = [int(variable.shape[0]) for variable in variables]
    if [len(value) for value in stored.values] != [4 * each for each in channels]:
        raise CorruptObjectError(
            f"The stored statistics of {backbone.name} have {len(stored.values)} arrays, and do not fit the "
            f"{len(variables)} of its BatchNorms.",
            advice="Their name says that they belong to this very network, so this is a bug: please report it.",
        )
    for variable, value in zip(variables, stored.values, strict=True):
        variable.assign(np.frombuffer(value, "<f4"))
