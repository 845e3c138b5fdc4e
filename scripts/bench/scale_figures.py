"""What `scripts.bench.scale` measures, as plain figures, how they grow, and the tables of everything for people."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from scripts.bench.common import PeakMemory, status_mib

TOO_SHORT_S = 0.006
"""Shorter times say nothing about growth."""
TOO_NEAR = 8
"""Nor do two sizes of which one is not so many times the other."""
LINEAR = 1.1
"""Exponent up to which something counts as linear: sorting, caches and noise are within it."""
PARTS = ("plan", "files", "commit", "disk cache", "list", "features", "order", "tasks")


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
        self.memory[name] = {"before_mib": before, "peak_mib": max(memory.stop(), before)}

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


def report(result: dict[str, Any]) -> str:
    """Everything that was measured, counted, computed and estimated, as text."""
    lines = [
        *_growth(result),
        *_memory(result),
        *_requests(result["requests"]),
        *_network(result["network"]),
        *_wear(result["wear"]),
        *_estimate(result["estimate"]),
    ]
    return "\n".join(lines)


def _growth(result: dict[str, Any]) -> Iterator[str]:
    figures = [Figure(**figure) for size in result["driver"] for figure in size["figures"]]
    yield f"1. Seconds of one process, shards of {result['images_per_shard']:,} images"
    yield f"  {'step':<34}{'shards':>9}{'units':>20}{'CPU s':>10}{'wall s':>10}{'us a unit':>11}  growth of CPU"
    for part in PARTS:
        for step in dict.fromkeys(figure.step for figure in figures if figure.part == part):
            found = [figure for figure in figures if (figure.part, figure.step) == (part, step)]
            for figure in found:
                spent = f"{figure.cpu_s:>10.3f}{figure.wall_s:>10.3f}{figure.cpu_s / figure.count * 1e6:>11,.2f}"
                name = step if figure is found[0] else ""
                growth = f"  {_grows(found)}" if figure is found[-1] else ""
                units = f"{figure.count:,} {figure.unit}"
                yield f"  {name:<34}{figure.shards:>9,}{units:>20}{spent}{growth}"
    for fact in dict.fromkeys(fact for size in result["driver"] for fact in size["facts"]):
        values = ", ".join(f"{size['facts'][fact]:,.0f}" for size in result["driver"] if fact in size["facts"])
        yield f"  {fact}: {values}"


def _grows(figures: list[Figure]) -> str:
    power = exponent(figures)
    if len({figure.count for figure in figures}) == 1:
        return "as many units at each size"
    if power is None:
        return "too short, or too near, to tell"
    word = "FASTER THAN LINEAR" if power > LINEAR else "linear" if power > 1 / LINEAR else "slower than linear"
    return f"n^{power:.2f}: {word}"


def _memory(result: dict[str, Any]) -> Iterator[str]:
    yield "2. Memory of that process in MiB, anonymous: before each part, and at its peak"
    yield f"  {'part':<10}" + "".join(f"{size['shards']:>16,}" for size in result["driver"])
    for part in PARTS:
        found = [size["memory"].get(part) for size in result["driver"]]
        cells = [f"{peak['before_mib']:,.0f} -> {peak['peak_mib']:,.0f}" if peak else "-" for peak in found]
        yield f"  {part:<10}" + "".join(f"{cell:>16}" for cell in cells)


def _requests(found: dict[str, Any]) -> Iterator[str]:
    less, more = found["shards"]
    size = found["images_per_shard"] * found["image_bytes"]
    yield f"3. Requests and bytes, counted with {less} and {more} shards of {size:,} bytes of images"
    yield f"  {'job':<58}{'a shard':>9}{'besides':>9}{'MB in':>8}{'MB out':>8}  of which a shard"
    for job, each in found["jobs"].items():
        requests, besides = each["requests_a_shard"], sum(each["requests_besides"].values())
        received, sent = each["received_bytes_a_shard"] / 1e6, each["sent_bytes_a_shard"] / 1e6
        kinds = ", ".join(f"{count:g} {kind}" for kind, count in requests.items())
        yield f"  {job:<58}{sum(requests.values()):>9g}{besides:>9g}{received:>8.2f}{sent:>8.2f}  {kinds or '-'}"
    yield (
        f"  a shard of cached features, opened: {found['maps_a_cached_shard']:g} memory maps, "
        f"{found['open_files_a_cached_shard']:g} open files; a process may have {found['max_maps']:,} maps"
    )
    cpu = ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in found["cpu_s"].items())
    yield f"  CPU an image of {found['image_bytes']:,} bytes, 500 x 375: {cpu}"


def _network(networks: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield "4. What 64 replicas exchange in a step, ring: sent, and received, by each; cached features of an image"
    for network, rows in networks.items():
        yield f"  {network:<26}{'unfreeze':>9}{'parameters':>13}{'MB a step':>11}{'KB cached':>11}"
        for row in rows:
            exchanged_mb, cached_kb = row["all_reduce_bytes"] / 1e6, row["cached_bytes"] / 1e3
            figures = f"{row['parameters']:>13,}{exchanged_mb:>11.2f}{cached_kb:>11.1f}"
            yield f"    {row['block']:<24}{row['depth']:>9}{figures}"


def _wear(wear: dict[str, Any]) -> Iterator[str]:
    yield f"5. Wear, planned on {wear['shards']:,} shards of {wear['images_per_shard']:,} images"
    for share, copied in wear["copied"].items():
        yield f"  {float(share):.2%} of the images removed at random: {copied:.1%} of the images copied"
    nights = wear["nights"]
    yield (
        f"  {nights['nights']} nights of {nights['new_images_a_night']:,} new images: {nights['shards_before']:,} "
        f"shards become {nights['shards_after']:,} ({nights['shards_if_written_at_once']:,} if written at once), "
        f"{nights['copied_an_added_image']:.1f} images copied for one that is new"
    )


def _estimate(found: dict[str, Any]) -> Iterator[str]:
    yield "6. ESTIMATE, not a measurement: measured figures above, and these inputs"
    for given in found["assumptions"]:
        yield f"  {given['name']:<24}{given['value']:>18,.10g} {given['unit']:<28} {given['source']}"
    for night, steps in found["nights"].items():
        yield f"  {night}: {_time(found['total_s'][night])} in all, {found['shards']:,.0f} shards"
        for step in steps:
            yield _step(step)
    yield "  instead of cached features"
    for step in found["instead"]:
        yield _step(step)
    yield "  limits"
    for name, value in found["limits"].items():
        yield f"    {name:<44}{value:>22,.0f}"


def _step(step: dict[str, Any]) -> str:
    waits = "; ".join(f"{name} {_time(seconds)}" for name, seconds in step["waits_s"].items())
    return f"    {step['step']:<46}{_time(step['seconds']):>9}  {waits}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
