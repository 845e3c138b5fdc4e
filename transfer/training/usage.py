"""What training takes: time of CPUs and GPUs, memory, energy, money; of all workers together."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from transfer.catalog.run import EpochRow, Usage
from transfer.config import CostConfig
from transfer.runtime.machine import memory_bytes
from transfer.runtime.numbers import duration, size


class Meter:
    """Counts what this process takes from now on."""

    def __init__(self) -> None:
        self._cpu_s, self._at = time.process_time(), time.monotonic()

    def read(self) -> list[float]:
        """CPU-seconds, GPU-seconds, peak of resident memory in bytes, and 1 for one worker: values that add up."""
        gpu_s = (time.monotonic() - self._at) * _gpus()
        return [time.process_time() - self._cpu_s, gpu_s, float(memory_bytes() or 0), 1.0]


def usage_of(sums: list[float]) -> Usage:
    """From the sums over all workers of what `Meter.read` gives."""
    cpu_s, gpu_s, memory, workers = sums
    return Usage(cpu_s=cpu_s, gpu_s=gpu_s, memory_bytes=int(memory), workers=round(workers))


@dataclass(frozen=True)
class Spent:
    """What the epochs of a run took. `memory_bytes`: peak of all workers together. `money`: None without a price."""

    cpu_s: float
    gpu_s: float
    memory_bytes: int
    kwh: float
    money: float | None

    @property
    def text(self) -> str:
        """In a sentence without a full stop."""
        gpu = f", {duration(self.gpu_s)} of GPUs" if self.gpu_s else ""
        money = f"; {self.money:,.2f} at `cost.per_hour`" if self.money is not None else ""
        return (
            f"{duration(self.cpu_s)} of CPUs{gpu}, {size(self.memory_bytes)} of memory at most, about "
            f"{self.kwh:.2g} kWh by the watts in `cost`{money}"
        )


def spent(history: Iterable[EpochRow], cost: CostConfig) -> Spent | None:
    """What all epochs took; None if that is not known of each, as of epochs that several trainings shared."""
    rows = list(history)
    counted = [(row.seconds, row.usage) for row in rows if row.usage is not None]
    if not rows or len(counted) < len(rows):
        return None
    cpu_s, gpu_s = sum(usage.cpu_s for _, usage in counted), sum(usage.gpu_s for _, usage in counted)
    hours = sum(seconds * usage.workers for seconds, usage in counted) / 3600
    return Spent(
        cpu_s=cpu_s,
        gpu_s=gpu_s,
        memory_bytes=max(usage.memory_bytes for _, usage in counted),
        kwh=(cpu_s * cost.watts_per_cpu + gpu_s * cost.watts_per_gpu) / 3.6e6,
        money=None if cost.per_hour is None else hours * cost.per_hour,
    )


def _gpus() -> int:
    """Number of GPUs that this process computes on."""
    tensorflow = sys.modules.get("tensorflow")
    return len(tensorflow.config.list_logical_devices("GPU")) if tensorflow else 0
