"""Which distribution strategy fits the process."""

from __future__ import annotations

import functools
import json
import os
from typing import Literal

import tensorflow as tf

Collectives = Literal["auto", "ring", "nccl"]


@functools.cache
def create_strategy(collectives: Collectives = "auto") -> tf.distribute.Strategy:
    """The strategy for this process: over all workers that TF_CONFIG names, else over its GPUs, else none.

    Call it before any other TensorFlow operation: a multi-worker strategy must set the runtime up first. It is made
    once a process: collectives of a second MirroredStrategy would carry the numbers of the first one's.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        # Where somebody else imported TensorFlow; what is set already may be set again at any time.
        tf.config.experimental.set_memory_growth(gpu, enable=True)
    if _worker_count() > 1:
        implementation = tf.distribute.experimental.CommunicationImplementation[collectives.upper()]
        options = tf.distribute.experimental.CommunicationOptions(implementation=implementation)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _worker_count() -> int:
    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    return len(cluster.get("worker", []))
