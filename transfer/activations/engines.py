"""What can run a frozen function, and with which settings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import tensorflow as tf

Hint = Literal["LATENCY", "THROUGHPUT"]
"""One call at a time with all threads, or several calls at a time with a few threads each."""


@dataclass(frozen=True)
class Setting:
    """How rows are handed to an engine."""

    rows: int
    """In one call."""
    hint: Hint = "LATENCY"


class Runner(Protocol):
    """A function that is ready to run with one setting. Called from `calls_at_once` threads."""

    setting: Setting
    calls_at_once: int

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        """Outputs, float32 [n, …] each, for float32 [n, …], n at most `setting.rows`."""


class Engine(Protocol):
    """Makes runners of one function."""

    name: str
    settings: list[Setting]
    """Worth trying, the best guess first."""

    def runner(self, setting: Setting) -> Runner:
        """Get ready to run with a setting."""


class TensorFlowEngine:
    """Runs a concrete function with TensorFlow, on whatever device it chooses."""

    name = "tensorflow"

    def __init__(self, function: Any, *, largest: int) -> None:
        self._function = function
        sizes = (128, 64, 256) if sees_gpu() else (32, 16, 64)
        self.settings = list(dict.fromkeys(Setting(min(rows, largest)) for rows in sizes))

    def runner(self, setting: Setting) -> Runner:
        """Get ready to run with a setting. TensorFlow prepares the function when it first sees a number of rows."""
        return _TensorFlowRunner(self._function, setting)


class _TensorFlowRunner:
    calls_at_once = 1

    def __init__(self, function: Any, setting: Setting) -> None:
        self._function = function
        self.setting = setting

    def __call__(self, rows: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in self._function(tf.constant(rows, tf.float32))]


def sees_gpu() -> bool:
    """Whether TensorFlow runs on a GPU."""
    return bool(tf.config.get_visible_devices("GPU"))


def run(runner: Runner, batches: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the outputs of each batch, in order. While they are computed, the next batches are read."""
    with ThreadPoolExecutor(runner.calls_at_once) as pool:
        waiting: deque[list[Future[list[np.ndarray]]]] = deque()
        try:
            for batch in batches:
                starts = range(0, len(batch), runner.setting.rows)
                waiting.append([pool.submit(runner, batch[start : start + runner.setting.rows]) for start in starts])
                # Enough calls stay behind to keep the engine busy while the reader has the answer.
                while sum(len(calls) for calls in waiting) - len(waiting[0]) >= runner.calls_at_once:
                    yield _joined(waiting.popleft())
            while waiting:
                yield _joined(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _joined(calls: list[Future[list[np.ndarray]]]) -> list[np.ndarray]:
    parts = [call.result() for call in calls]
    return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
