"""The tables of `scripts.bench.sweep` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MEASURES = ("cpu_s", "wall_s")
KINDS = {"all": "all", "work": "start apart", "trials": "trials only"}
"""What is counted of an arm."""
# A ratio, what it should be at least or at most, and by which of its figures.
AIMS = {
    "tutorials / ours": (">= 4", "all", "cpu_s"),
    "tutorials-heads / heads": (">= 20", "all", "cpu_s"),
    "keras-tuner / ours": (">= 3", "all", "cpu_s"),
    "ours / floor": ("<= 1.3", "all", "cpu_s"),
    "heads-32 / heads-1": ("< 1.5", "work", "wall_s"),
}
PARTS = {
    "start": "start: imports, Ray",
    "extract": "network, extraction",
    "tune": "trials",
    "rest": "page, shutdown",
}


def report(result: dict[str, Any]) -> str:
    """Everything that was measured, as text."""
    images = ", ".join(f"{count:,} to {split}" for split, count in result["images"].items())
    work = f"{result['trials']} trials of {result['epochs']} epochs, {result['rounds']} rounds"
    lines = [
        f"{images}, at {result['image_size']}; {work}; CPU counted by {result['cpu_counted_by']}",
        *_arms(result["arms"]),
        *_ratios(result["ratio"]),
        *_parts(result["arms"]),
        *(_parity(result["parity"]) if result["parity"] else ()),
    ]
    return "\n".join(lines)


def _arms(arms: dict[str, Any]) -> Iterator[str]:
    yield f"  {'median CPU-seconds and seconds':<34}" + "".join(f"{name:>12}{'wall':>8}" for name in KINDS.values())
    for arm, found in arms.items():
        yield f"  {arm:<34}" + "".join(f"{found[kind]['cpu_s']:>12.1f}{found[kind]['wall_s']:>8.1f}" for kind in KINDS)


def _ratios(ratios: dict[str, Any]) -> Iterator[str]:
    yield f"  {'ratio':<34}" + "".join(f"{name:>12}{'wall':>8}" for name in KINDS.values()) + "   aim"
    for pair, found in ratios.items():
        figures = "".join(f"{found[kind]['cpu_s']:>12.2f}{found[kind]['wall_s']:>8.2f}" for kind in KINDS)
        aim, kind, measure = AIMS[pair]
        yield f"  {pair:<34}{figures}   {aim} ({KINDS[kind]}, {measure})"


def _parts(arms: dict[str, Any]) -> Iterator[str]:
    ours = {arm: found["parts"] for arm, found in arms.items() if found["parts"].keys() == PARTS.keys()}
    yield f"  {'where CPU-seconds go':<44}" + "".join(f"{arm:>12}" for arm in ours)
    for part, meaning in PARTS.items():
        yield f"  {meaning:<44}" + "".join(f"{found[part]['cpu_s']:>12.1f}" for found in ours.values())
    if "floor" in arms:
        floor = ", ".join(f"{part} {found['cpu_s']:.1f}" for part, found in arms["floor"]["parts"].items())
        yield f"  of the floor: {floor}"


def _parity(parity: dict[str, Any]) -> Iterator[str]:
    mean, best = parity["mean"], parity["best"]
    yield f"  parity: {'the arms agree' if parity['agree'] else 'THE ARMS DO NOT AGREE'}; noise {parity['noise']:.4f}"
    yield f"  mean difference over trials {mean['difference']:+.4f}, tolerance {mean['tolerance']:.4f}"
    arms = [arm for arm in best if arm not in {"lost", "tolerance"}]
    found = ", ".join(f"{arm} {best[arm][0]} at {best[arm][1]:g} ({best[arm][2]:.3f})" for arm in arms)
    yield f"  best: {found}; lost {best['lost']:.3f}, tolerance {best['tolerance']:.3f}"
    yield f"  {'unfreeze':>10}{'rate':>10}" + "".join(f"{arm:>13}" for arm in arms) + f"{'tolerance':>13}"
    for trial in parity["trials"]:
        accuracies = "".join(f"{'-' if trial[arm] is None else format(trial[arm], '.3f'):>13}" for arm in arms)
        verdict = "" if trial["agree"] else "   DIFFERS"
        yield f"{trial['unfreeze']:>12}{trial['learning_rate']:>10g}{accuracies}{trial['tolerance']:>13.3f}{verdict}"
    if parity["without_result"]:
        yield f"  diverged in one arm only: {parity['without_result']}"
