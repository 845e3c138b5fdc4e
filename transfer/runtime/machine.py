"""What a machine and a process count: time of CPUs, memory, energy. Linux tells all of it; elsewhere parts are None.

Energy comes from the counters of processors (RAPL, which on most machines root alone may read) and of NVIDIA's GPUs
(NVML). They count what whole packages and cards take, other programs included.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

RAPL = Path("/sys/class/powercap")
_STAT = Path("/proc/stat")
_STATUS = Path("/proc/self/status")
# Of a line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
_BUSY = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class CpuTime:
    """Seconds since some time in the past: `wall`, and all CPUs of the machine together at work."""

    wall: float
    busy: float

    def share_of_others(self, before: CpuTime, *, own_s: float, cpus: int) -> float:
        """Share of the machine's CPUs that was at work since `before` for others than whoever took `own_s`, 0 to 1."""
        others = self.busy - before.busy - own_s
        return min(max(others / ((self.wall - before.wall) * cpus), 0.0), 1.0)


def cpu_time() -> CpuTime | None:
    """The times of this moment; None where the machine does not tell."""
    try:
        counted = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    ticks = sum(int(counted[column]) for column in _BUSY if column < len(counted))
    return CpuTime(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"))


def memory_bytes(key: str = "VmHWM") -> int | None:
    """Resident memory of this process: the peak (`VmHWM`) or of this moment (`VmRSS`); None where nothing tells."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


class EnergyCounters:
    """The machine's counters of energy. Counters that this process may not read are left out."""

    def __init__(self, rapl: Path = RAPL) -> None:
        # `psys`, the zone of the whole platform, has the packages in it.
        zones = [zone for zone in sorted(rapl.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._packages = [zone for zone in zones if not _text(zone / "name").startswith("psys")]
        self._packages = [zone for zone in self._packages if _counter(zone / "energy_uj") is not None]

    @property
    def names(self) -> list[str]:
        """The kinds of counters that there are: `RAPL`, `NVML`."""
        return [name for name, found in (("RAPL", self._packages), ("NVML", self._gpus)) if found]

    def read(self) -> list[int]:
        """All counters, in microjoules."""
        packages = [_counter(zone / "energy_uj") or 0 for zone in self._packages]
        return [*packages, *(1000 * _millijoules(self._nvml, gpu) for gpu in self._gpus)]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Energy between two readings. A counter of RAPL begins again at 0, perhaps once in between."""
        ranges = [_counter(zone / "max_energy_range_uj") or 0 for zone in self._packages]
        ranges += [0] * len(self._gpus)
        spent = zip(before, after, ranges, strict=True)
        return sum(then - first + (full if then < first else 0) for first, then, full in spent) / 1e6

    @cached_property
    def _nvml(self) -> ctypes.CDLL | None:
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
        return library if library.nvmlInit_v2() == 0 else None

    @cached_property
    def _gpus(self) -> list[ctypes.c_void_p]:
        """Handles of the GPUs that count their energy."""
        if self._nvml is None:
            return []
        count = ctypes.c_uint()
        found: list[ctypes.c_void_p] = []
        self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            gpu = ctypes.c_void_p()
            if self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(gpu)) == 0 and _millijoules(
                self._nvml, gpu
            ):
                found.append(gpu)
        return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""


def _counter(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _millijoules(nvml: ctypes.CDLL | None, gpu: ctypes.c_void_p) -> int:
    """Energy since the driver was loaded; 0 if the GPU does not count it."""
    energy = ctypes.c_ulonglong()
    if nvml is None or nvml.nvmlDeviceGetTotalEnergyConsumption(gpu, ctypes.byref(energy)) != 0:
        return 0
    return energy.value
