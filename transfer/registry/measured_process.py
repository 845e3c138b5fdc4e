"""A published version in a process of its own, loaded as a server loads it, to be measured by `benchmark.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.runtime.machine import memory_bytes
from transfer.runtime.memory import FOR_PREDICTION, memory_explained
from transfer.runtime.startup import import_tensorflow, own_process

_loaded: list[Any] = []
"""The model of this process, and its signature for encoded images."""
_images: list[bytes] = []


@dataclass(frozen=True)
class Loaded:
    """Seconds until a model is loaded, and from there to its first answer; resident bytes before it was loaded."""

    load_s: float
    first_answer_s: float
    memory_before_bytes: int | None


@dataclass(frozen=True)
class Turn:
    """Seconds of each call, and CPU-seconds of this process in all of them."""

    seconds: list[float]
    cpu_s: float


@dataclass(frozen=True)
class Peak:
    """Largest resident memory of this process, and largest memory of each kind of device, in bytes; None: not known."""

    memory_bytes: int | None
    gpu_memory_bytes: int | None
    devices: list[str]


def load(folder: str, images: list[bytes]) -> Loaded:
    """Load the SavedModel in `folder`, and ask it about the first of the encoded images that later calls are about."""
    own_process()
    import_tensorflow()
    import tensorflow as tf

    before = memory_bytes("VmRSS")
    with memory_explained(f"The model in {Path(folder).name}", advice=FOR_PREDICTION):
        started = time.perf_counter()
        model = tf.saved_model.load(folder)
        loaded = time.perf_counter()
        _loaded[:] = [model, model.signatures["serving_default"]]
        _images[:] = images
        _answer(images[:1])
        return Loaded(loaded - started, time.perf_counter() - loaded, before)


def ask(batch_size: int, calls: int) -> Turn:
    """Ask about `batch_size` images at a time, so many times; each call begins where the last one ended."""
    seconds = []
    cpu = time.process_time()
    for call in range(calls):
        first = call * batch_size % len(_images)
        batch = [_images[(first + index) % len(_images)] for index in range(batch_size)]
        started = time.perf_counter()
        _answer(batch)
        seconds.append(time.perf_counter() - started)
    return Turn(seconds, time.process_time() - cpu)


def peak() -> Peak:
    """What this process took so far at most."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    used = [tf.config.experimental.get_memory_info(f"GPU:{index}")["peak"] for index in range(len(gpus))]
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return Peak(memory_bytes(), sum(used) if gpus else None, details)


def _answer(images: list[bytes]) -> None:
    import tensorflow as tf

    with memory_explained(f"A batch of {len(images)} images", advice=FOR_PREDICTION):
        # The answer is copied to this process's memory: on a GPU it is computed only then.
        _loaded[1](image_bytes=tf.constant(images))["probabilities"].numpy()
