"""The fastest way on this machine from pixels to the outputs of frozen prefixes."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np

from transfer.activations.engines import Engine, Runner, Setting, TensorFlowEngine, run, sees_gpu
from transfer.activations.openvino import OpenVinoEngine, is_installed
from transfer.activations.prefix import Prefix
from transfer.activations.tracing import Pass
from transfer.errors import ActivationsError
from transfer.memory import memory_explained

logger = logging.getLogger(__name__)

CHECKED_ROWS = 2
"""Of the first batch, compared with the plain Keras call: as few as tell a mix-up of rows, for that call is slow."""
TOLERANCE = 1e-4
"""Largest difference from the plain Keras call, as a share of the largest magnitude in that output.

Far below what half precision costs (5e-4 and more). Not tighter, because rounding alone comes near: on one network of
random weights, plain Keras was 1.9e-5 away from the same network in float64, and OpenVINO 1.6e-5.
"""
LARGEST_BATCH_BYTES = 64 * 1024**2
MEASURING_SHARE = 0.03
"""Of the whole time; measuring that would take more is left out."""

_fastest: dict[tuple[object, ...], Setting] = {}
"""What measuring found in this process, by engine and by what is computed."""


class Work(Protocol):
    """What a forward pass computes."""

    subject: str
    advice: str
    """What is said when memory runs out: what ran, and what to do."""
    name: tuple[object, ...]
    """What decides how fast it runs; weights do not."""

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of the input for one image."""

    def trace(self) -> Any:
        """A concrete function without variables, float32 [n, *row_shape] to a list of float32 [n, …]."""

    def plain(self, rows: np.ndarray) -> list[np.ndarray]:
        """The same outputs by the way that faster ones must equal."""


class Forward:
    """A compiled function from pixels, or from what is kept of an earlier prefix, to the outputs of some prefixes."""

    def __init__(self, work: Work, engine: Engine, *, otherwise: Engine | None, batch_size: int, rows: int) -> None:
        self.batch_size = batch_size
        """Rows to hand over at a time."""
        self._work = work
        self._otherwise = otherwise
        self._rows = rows
        self._use(engine)

    @property
    def engine(self) -> str:
        """What runs: `tensorflow` or `openvino`. It may turn out with the first rows that it must be TensorFlow."""
        return self._engine.name

    def map(self, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """For each batch, in order, the outputs of all prefixes, float32 [n, *prefix.shape] each.

        `batches`: float32 [n, image_size, image_size, 3] in 0..255, or [n, *start.shape], n at most `batch_size`. They
        are read a little ahead of the answers, in this thread, and must not change after they are handed over. Raises
        ActivationsError when OpenVINO was asked for by name and disagrees with TensorFlow, OutOfMemoryError.
        """
        reader = iter(batches)
        work = f"{self._work.subject}, on at most {self.batch_size} rows at a time,"
        with memory_explained(work, advice=self._work.advice):
            if self._is_unchecked:
                yield from self._check(reader)
            if self._is_undecided:
                yield from self._measure(reader)
            yield from run(self._runner, reader)

    def _use(self, engine: Engine) -> None:
        self._engine = engine
        self._is_unchecked = engine.name != "tensorflow"
        remembered = _fastest.get((engine.name, *self._work.name))
        self._is_undecided = remembered is None and len(engine.settings) > 1
        started = perf_counter()
        self._runner = engine.runner(remembered or engine.settings[0])
        self._setup_s = perf_counter() - started

    def _check(self, reader: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Run the first batch and compare its first rows with the plain Keras call."""
        for batch in islice(reader, 1):
            started = perf_counter()
            # Most of the plain call is Python, most of the fast one is not.
            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(_run_one, self._runner, batch)
                expected = self._work.plain(batch[:CHECKED_ROWS])
                outputs = running.result()
            self._setup_s += perf_counter() - started
            difference = _difference(outputs, expected)
            self._is_unchecked = False
            # Written so that NaN is no agreement.
            if not difference <= TOLERANCE:
                self._give_up(difference)
                outputs = _run_one(self._runner, batch)
            yield outputs

    def _give_up(self, difference: float) -> None:
        message = (
            f"On the first images OpenVINO differs from TensorFlow by {difference:.1e} of the largest output; at most "
            f"{TOLERANCE:.0e} is accepted."
        )
        if self._otherwise is None:
            raise ActivationsError(message, advice="Run it with TensorFlow.")
        logger.warning("%s TensorFlow is used.", message)
        self._use(self._otherwise)

    def _measure(self, reader: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Run the first batches with one setting after the other, and stay with the fastest of those that had some."""
        best = self._runner
        least_s = yield from self._seconds_a_row(best, reader)
        if least_s is None:
            return
        self._is_undecided = False
        others = [setting for setting in self._engine.settings if setting != best.setting]
        if self._setup_s * len(others) > MEASURING_SHARE * least_s * self._rows:
            return
        for setting in others:
            runner = self._engine.runner(setting)
            seconds = yield from self._seconds_a_row(runner, reader)
            if seconds is None:
                break
            if seconds < least_s:
                best, least_s = runner, seconds
        logger.info("%s runs fastest with %s: %.0f images a second.", self.engine, best.setting, 1 / least_s)
        self._runner = best
        _fastest[self.engine, *self._work.name] = best.setting

    def _seconds_a_row(
        self, runner: Runner, reader: Iterator[np.ndarray]
    ) -> Generator[list[np.ndarray], None, float | None]:
        """Run some batches, yield their outputs, and give the time that a row takes; None when there are no more."""
        seconds = None
        # The first time a runner still prepares itself.
        for _ in range(2):
            rows_at_once = runner.calls_at_once * runner.setting.rows
            part = list(islice(reader, -(-2 * rows_at_once // self.batch_size)))
            started = perf_counter()
            outputs = list(run(runner, part))
            seconds = (perf_counter() - started) / sum(len(batch) for batch in part) if part else None
            yield from outputs
        return seconds


def build_forward(
    prefixes: Sequence[Prefix],
    *,
    start: Prefix | None = None,
    engine: Literal["auto", "tensorflow", "openvino"] = "auto",
    rows: int | None = None,
) -> Forward:
    """A forward pass that gives the outputs of all `prefixes`, cuts of one network, in one go.

    It starts from pixels, or from the kept output of `start`, an earlier cut. Otherwise like `forward_of`.
    """
    return forward_of(Pass(prefixes, start), engine=engine, rows=rows)


def forward_of(
    work: Work, *, engine: Literal["auto", "tensorflow", "openvino"] = "auto", rows: int | None = None
) -> Forward:
    """The fastest way to do some work on this machine.

    `auto` is OpenVINO where that is installed, no GPU is there, and its outputs agree with TensorFlow's; TensorFlow
    otherwise. `rows` is how many will come, as far as known: with many of them, the first ones are used to find the
    fastest setting.

    Raises ActivationsError when OpenVINO is asked for by name and cannot be used.
    """
    function = work.trace()
    row_bytes = prod(work.row_shape) * np.dtype(np.float32).itemsize
    batch_size = max(1, min(256 if sees_gpu() else 64, LARGEST_BATCH_BYTES // row_bytes))
    tensorflow = TensorFlowEngine(function, largest=batch_size)

    def forward(chosen: Engine, otherwise: Engine | None) -> Forward:
        return Forward(work, chosen, otherwise=otherwise, batch_size=batch_size, rows=rows or 0)

    if engine == "tensorflow" or (engine == "auto" and (sees_gpu() or not is_installed())):
        return forward(tensorflow, None)
    try:
        openvino = OpenVinoEngine(function, work.row_shape, largest=batch_size)
        return forward(openvino, tensorflow if engine == "auto" else None)
    except ActivationsError as error:
        if engine == "openvino":
            raise
        logger.info("%s TensorFlow is used.", error.message)
        return forward(tensorflow, None)


def _run_one(runner: Runner, batch: np.ndarray) -> list[np.ndarray]:
    return next(run(runner, [batch]))


def _difference(outputs: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference, over all outputs, as a share of the largest magnitude in its output; NaN if any is."""
    shares = [
        np.abs(output[: len(wanted)] - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
        for output, wanted in zip(outputs, expected, strict=True)
    ]
    return float(np.max(shares))
