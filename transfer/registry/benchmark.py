"""Speed, memory and energy of published versions: each in a process of its own, asked in turns.

The driver needs no TensorFlow. On a machine that is at work for other programs nothing is told, because the figures
would be of these, too.
"""

from __future__ import annotations

import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict

from transfer.catalog.model import ModelVersion
from transfer.errors import BusyMachineError, RegistryError
from transfer.registry import measured_process
from transfer.registry.measured_process import Loaded, Peak, Turn
from transfer.registry.versions import download_version
from transfer.runtime.fork_server import prepare_process, spawning_context
from transfer.runtime.machine import EnergyCounters, cpu_time
from transfer.runtime.numbers import percents_apart
from transfer.storage import Store

Answer = TypeVar("Answer")
ROUNDS = 10
ALONE_IN_ROUND = 10
"""Calls with one image in a round: 100 in all, the fewest for a 95th percentile."""
BATCHES_IN_ROUND = 2
BATCH_SIZE = 32
WARM_UP_CALLS = 3
IMAGES = 32
IMAGE_SIZE = (480, 640)
"""Height and width of the JPEGs that versions are asked about."""
WATTS_A_CPU = 10.0
"""Assumed of a CPU at work, where no counter tells."""
MAX_LOAD = 0.1
LOOK_S = 1.0
"""How long the machine is looked at before anything is measured."""


class VersionFigures(BaseModel):
    """What was measured of a version.

    `milliseconds`, `milliseconds_p95`: median and 95th percentile of the time for one image. `images_a_second`: in
    batches of `BATCH_SIZE`. `load_s`: of loading the files from a disk; `first_answer_s`: of the first answer after
    that. `memory_bytes`: peak of the process, of which it had `memory_before_bytes` before it loaded the model.
    `gpu_memory_bytes`: peak; None without a GPU. `cpu_seconds_an_image`, `joules_an_image`: in batches.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    size_bytes: int
    load_s: float
    first_answer_s: float
    milliseconds: float
    milliseconds_p95: float
    images_a_second: float
    memory_bytes: int | None
    memory_before_bytes: int | None
    gpu_memory_bytes: int | None
    cpu_seconds_an_image: float
    joules_an_image: float


class Benchmark(BaseModel):
    """Figures of versions that were asked in turns, on one machine.

    `load`: share of the CPUs that was at work for others meanwhile; None where the machine does not tell.
    `energy_from`: `RAPL`, `NVML`, both, or that it is an estimate.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    versions: list[VersionFigures]
    load: float | None
    energy_from: str
    machine: str
    cpus: int
    gpus: list[str]


def benchmark(
    store: Store, versions: Sequence[ModelVersion], *, max_load: float = MAX_LOAD, watts_a_cpu: float = WATTS_A_CPU
) -> Benchmark:
    """Measure versions of a model, in turns.

    `max_load`: largest share of the CPUs that may be at work for others. `watts_a_cpu`: of a CPU at work, for machines
    without counters of energy. Raises BusyMachineError above `max_load`, RegistryError if a process fails,
    CorruptObjectError for a wrong byte, OutOfMemoryError.
    """
    watch = _Watch(max_load)
    watch.look_before()
    counters = EnergyCounters()
    with ExitStack() as stack:
        images = drawn_photographs()
        measured = [stack.enter_context(_Measured(store, version, images, counters)) for version in versions]
        for each in measured:
            each.ask(1, WARM_UP_CALLS)
            each.ask(BATCH_SIZE, WARM_UP_CALLS)
        watch.begin()
        for turn in range(ROUNDS):
            # In alternating order, so that nothing that changes on the machine meets one of them alone.
            for each in measured if turn % 2 else reversed(measured):
                each.take_turn()
        load = watch.end(own_s=sum(each.cpu_s for each in measured))
        counted = counters.names
        figures = [each.figures(None if counted else watts_a_cpu) for each in measured]
        gpus = measured[0].peak.devices
    return Benchmark(
        model=versions[0].model,
        versions=figures,
        load=load,
        energy_from=" and ".join(counted) if counted else f"an estimate: CPU-seconds at {watts_a_cpu:g} W a CPU",
        machine=_processor(),
        cpus=os.cpu_count() or 1,
        gpus=gpus,
    )


class _Measured:
    """A version in its process."""

    def __init__(self, store: Store, version: ModelVersion, images: list[bytes], counters: EnergyCounters) -> None:
        self._store, self._version, self._images, self._counters = store, version, images, counters
        self._stack = ExitStack()
        self._alone: list[float] = []
        self._batches: list[float] = []
        self._cpu_of_batches_s = self._joules = self.cpu_s = 0.0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="transfer-benchmark-"))
            download_version(self._store, self._version, Path(folder))
            self._pool = stack.enter_context(
                ProcessPoolExecutor(
                    1, mp_context=spawning_context(), initializer=prepare_process, initargs=({**os.environ},)
                )
            )
            self._loaded: Loaded = self._call(measured_process.load, folder, self._images)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, batch_size: int, calls: int) -> Turn:
        return self._call(measured_process.ask, batch_size, calls)

    def take_turn(self) -> None:
        """Ask about images one by one, then in batches."""
        alone = self.ask(1, ALONE_IN_ROUND)
        before = self._counters.read()
        batches = self.ask(BATCH_SIZE, BATCHES_IN_ROUND)
        self._joules += self._counters.joules(before, self._counters.read())
        self._alone += alone.seconds
        self._batches += batches.seconds
        self._cpu_of_batches_s += batches.cpu_s
        self.cpu_s += alone.cpu_s + batches.cpu_s

    @property
    def peak(self) -> Peak:
        return self._call(measured_process.peak)

    def figures(self, watts_a_cpu: float | None) -> VersionFigures:
        """`watts_a_cpu`: for an estimate of the energy; None if counters told it."""
        images, peak = BATCH_SIZE * len(self._batches), self.peak
        joules = self._joules if watts_a_cpu is None else self._cpu_of_batches_s * watts_a_cpu
        return VersionFigures(
            version=self._version.number,
            size_bytes=self._version.size_bytes,
            load_s=self._loaded.load_s,
            first_answer_s=self._loaded.first_answer_s,
            milliseconds=1000 * median(self._alone),
            milliseconds_p95=1000 * float(np.percentile(self._alone, 95)),
            images_a_second=BATCH_SIZE / median(self._batches),
            memory_bytes=peak.memory_bytes,
            memory_before_bytes=self._loaded.memory_before_bytes,
            gpu_memory_bytes=peak.gpu_memory_bytes,
            cpu_seconds_an_image=self._cpu_of_batches_s / images,
            joules_an_image=joules / images,
        )

    def _call(self, function: Callable[..., Answer], *arguments: Any) -> Answer:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RegistryError(
                f"The process that measures version {self._version.number} of `{self._version.model}` ended abruptly.",
                advice="Usually the machine ran out of memory.",
            ) from error


class _Watch:
    """What the machine's CPUs are at for others. Raises BusyMachineError above a limit."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.begin()

    def begin(self) -> None:
        self._before, self._own_s = cpu_time(), time.process_time()

    def look_before(self) -> None:
        """Look at the machine before anything is started."""
        time.sleep(LOOK_S)
        self.end(own_s=0.0)

    def end(self, *, own_s: float) -> float | None:
        """Share since `begin`; `own_s`: CPU-seconds of the processes that are measured."""
        now = cpu_time()
        if now is None or self._before is None:
            return None
        own_s += time.process_time() - self._own_s
        share = now.share_of_others(self._before, own_s=own_s, cpus=os.cpu_count() or 1)
        if share > self._limit:
            found, limit = percents_apart(share, self._limit)
            raise BusyMachineError(
                f"{found} of this machine's CPUs are at work for other programs; at most {limit} may be. Figures would "
                "be of these, too, and are not told.",
                advice="Repeat the command when nothing else runs, or allow more by --max-load.",
            )
        return share


def drawn_photographs() -> list[bytes]:
    """JPEGs of smooth colors under noise, as large in bytes as photographs of that size."""
    from PIL import Image

    random = np.random.default_rng(0)
    height, width = IMAGE_SIZE
    images = []
    for _ in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        target = io.BytesIO()
        Image.fromarray(pixels).save(target, "JPEG", quality=90)
        images.append(target.getvalue())
    return images


def _processor() -> str:
    """The processor's name; where it is not told, its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
