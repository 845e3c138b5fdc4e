"""The fast way on this machine from pixels to the outputs of frozen parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import Any, Literal, Protocol

import numpy as np

from transfer.errors import FeaturesError
from transfer.features.engines import Engine, OpenVinoEngine, TensorFlowEngine, is_installed, run, sees_gpu
from transfer.features.frozen import FrozenPart
from transfer.features.network import Pass
from transfer.runtime.memory import memory_explained

logger = logging.getLogger(__name__)

CHECKED_ROWS = 2
"""Of the first batch, compared with the plain Keras call: as few as tell a mix-up of rows, for that call is slow."""
TOLERANCE = 1e-4
"""Largest difference from the plain Keras call, as a share of the largest magnitude in that output.

Far below what half precision costs (5e-4 and more). Not tighter, because rounding alone comes near: on one network of
random weights, plain Keras was 1.9e-5 away from the same network in float64, and OpenVINO 1.6e-5.
"""
LARGEST_BATCH_BYTES = 64 * 1024**2


class Work(Protocol):
    """What a forward pass computes."""

    subject: str
    advice: str
    """What is said when memory runs out: what ran, and what to do."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the input for one image."""

    def trace(self) -> Any:
        """A concrete function without variables, float32 [n, *row_shape] to a list of float32 [n, …]."""

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """The same outputs by the way that faster ones must equal."""


class Forward:
    """A compiled function from pixels, or from cached features of an earlier cut, to the outputs of frozen parts."""

    def __init__(self, work: Work, engine: Engine, *, otherwise: Engine | None, batch_size: int) -> None:
        self.batch_size = batch_size
        """Rows to hand over at a time."""
        self._work = work
        self._engine = engine
        self._otherwise = otherwise
        self._is_unchecked = engine.name != "tensorflow"

    @property
    def engine(self) -> str:
        """What runs: `tensorflow` or `openvino`. It may turn out with the first rows that it must be TensorFlow."""
        return self._engine.name

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """For each batch, in order, the outputs of all frozen parts, float32 [n, *shape] each.

        `batches`: float32 [n, height, width, 3] in 0..255, or [n, *start.shape], n at most `batch_size`. They
        are read a little ahead of the answers, in this thread, and must not change after they are handed over. Raises
        FeaturesError when OpenVINO was asked for by name and disagrees with TensorFlow, OutOfMemoryError.
        """
        reader = iter(batches)
        work = f"{self._work.subject}, on at most {self.batch_size} rows at a time,"
        with memory_explained(work, advice=self._work.advice):
            if self._is_unchecked:
                for batch in islice(reader, 1):
                    yield self._checked(batch)
            yield from run(self._engine, reader)

    def _checked(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run the first batch and compare its first rows with the plain Keras call."""
        # Most of the plain call is Python, most of the fast one is not.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(_run_one, self._engine, batch)
            expected = self._work.plain(batch[:CHECKED_ROWS])
            outputs = running.result()
        self._is_unchecked = False
        difference = _difference(outputs, expected)
        # NaN is no agreement.
        if difference <= TOLERANCE:
            return outputs
        message = (
            f"On the first images OpenVINO differs from TensorFlow by {difference:.1e} of the largest output; at most "
            f"{TOLERANCE:.0e} is accepted."
        )
        if self._otherwise is None:
            raise FeaturesError(message, advice="Run it with TensorFlow.")
        logger.warning("%s TensorFlow is used.", message)
        self._engine = self._otherwise
        return _run_one(self._engine, batch)


def build_forward(
    frozen_parts: Sequence[FrozenPart],
    *,
    start: FrozenPart | None = None,
    engine: Literal["auto", "tensorflow", "openvino"] = "auto",
) -> Forward:
    """A forward pass that gives the outputs of all `frozen_parts`, cuts of one network, in one go.

    It starts from pixels, or from the cached features of `start`, an earlier cut. Otherwise like `forward_of`.
    """
    return forward_of(Pass(frozen_parts, start), engine=engine)


def forward_of(work: Work, *, engine: Literal["auto", "tensorflow", "openvino"] = "auto") -> Forward:
    """The fast way to do some work on this machine.

    `auto` is OpenVINO where that is installed, no GPU is there, and its outputs agree with TensorFlow's; TensorFlow
    otherwise. Raises FeaturesError when OpenVINO is asked for by name and cannot be used.
    """
    function = work.trace()
    row_bytes = prod(work.row_shape) * np.dtype(np.float32).itemsize
    batch_size = max(1, min(256 if sees_gpu() else 64, LARGEST_BATCH_BYTES // row_bytes))
    tensorflow = TensorFlowEngine(function, largest=batch_size)
    if engine == "openvino" or (engine == "auto" and is_installed() and not sees_gpu()):
        otherwise = tensorflow if engine == "auto" else None
        try:
            openvino = OpenVinoEngine(function, work.row_shape, largest=batch_size)
            return Forward(work, openvino, otherwise=otherwise, batch_size=batch_size)
        except FeaturesError as error:
            if engine == "openvino":
                raise
            logger.info("%s TensorFlow is used.", error.message)
    return Forward(work, tensorflow, otherwise=None, batch_size=batch_size)


def _run_one(engine: Engine, batch: np.ndarray) -> list[np.ndarray]:
    return next(run(engine, [batch]))


def _difference(outputs: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference, over all outputs, as a share of the largest magnitude in its output; NaN if any is."""
    shares = [
        np.abs(output[: len(wanted)] - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
        for output, wanted in zip(outputs, expected, strict=True)
    ]
    return float(np.max(shares))
