"""What `scripts.bench.scale` measures, as plain figures, and how they grow."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from scripts.bench.stopwatch import PeakMemory, status_mib

TOO_SHORT_S = 0.006
"""Shorter times say nothing about growth."""
TOO_NEAR = 8
"""Nor do two sizes of which one is not so many times the other."""
LINEAR = 1.1
"""Exponent up to which something counts as linear: sorting, caches and noise are within it."""


@dataclass(frozen=True)
class Figure:
    """What one step took."""

    part: str
    step: str
    shards: int
    """Of the dataset."""
    unit: str
    """What the step should be linear in: images, shards, files."""
    count: int
    """How many of those it had."""
    cpu_s: float
    """CPU-seconds of the process, all its threads: what others do on the machine hardly changes them."""
    wall_s: float


class Figures:
    """Collects the figures of one process."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.figures: list[Figure] = []
        self.memory: dict[str, dict[str, float]] = {}
        self.facts: dict[str, float] = {}
        self._part = ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the steps of a part, and the most memory that it takes."""
        self._part = name
        before, memory = status_mib("RssAnon"), PeakMemory()
        yield
        self.memory[name] = {"before_mib": before, "peak_mib": max(memory.stop()["anonymous"], before)}

    @contextmanager
    def step(self, name: str, unit: str, count: int) -> Iterator[None]:
        """Time a step that has `count` units to do."""
        started, cpu_started = time.perf_counter(), time.process_time()
        yield
        cpu_s, wall_s = time.process_time() - cpu_started, time.perf_counter() - started
        self.figures.append(Figure(self._part, name, self.shards, unit, count, cpu_s, wall_s))

    def plain(self) -> dict[str, Any]:
        """Everything, in JSON's own types."""
        return {
            "figures": [asdict(figure) for figure in self.figures],
            "memory": self.memory,
            "facts": self.facts,
        }


def exponent(figures: Iterable[Figure]) -> float | None:
    """The power of its units with which a step's CPU time grows, up to its largest size; None: that cannot be told."""
    known = sorted(figures, key=lambda figure: figure.count)
    smaller = [figure for figure in known if figure.count * TOO_NEAR <= known[-1].count]
    if not smaller or smaller[-1].cpu_s < TOO_SHORT_S:
        return None
    return math.log(known[-1].cpu_s / smaller[-1].cpu_s) / math.log(known[-1].count / smaller[-1].count)


def seconds_for(figures: Iterable[Figure], count: float) -> float:
    """CPU-seconds for another number of units: from the largest size measured, as it grows, and at least linearly."""
    known = list(figures)
    largest = max(known, key=lambda figure: figure.count)
    power = exponent(known)
    return largest.cpu_s * (count / largest.count) ** max(1.0 if power is None else power, 1.0)
