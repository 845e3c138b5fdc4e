"""The tables of `scripts.bench.reuse` for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# A ratio, what it should be at least or at most, and for which arm's sake.
AIMS = {
    "tutorial / ours-cold": ">= 15",
    "careful / ours-cold": ">= 2",
    "ours-cold / bare": "<= 1.25",
    "ours-warm / ours-cold": "no forward pass",
    "ours-grown / ours-cold": "<= 0.08",
}
PHASES = {
    "load": "start: imports and network",
    "build": "start: compile the forward pass",
    "choose": "measure and choose",
    "digest": "digest of the weights",
    "input": "wait for decoded images",
    "forward": "forward",
    "write": "write",
    "extract": "plan and commit",
    "train": "train",
    "checkpoints": "checkpoints and events",
    "rest": "rest",
}


def report(result: dict[str, Any]) -> str:
    """Everything that was measured, as text."""
    lines = [
        f"{result['images']:,} images at {result['image_size']}, {result['epochs']} epochs, {result['rounds']} rounds"
    ]
    for network, figures in result["networks"].items():
        lines += ["", network, *_network(figures)]
    if memory := result["memory"]:
        lines += ["", f"Peak memory of ours-cold ({memory['images']})"]
        lines += [
            f"  {int(images):>7,} images{peak['anonymous']:>8,.0f} MiB anonymous{peak['resident']:>8,.0f} MiB resident"
            for images, peak in memory["peak_mib"].items()
        ]
    return "\n".join(lines)


def _network(figures: dict[str, Any]) -> Iterator[str]:
    parity = figures["parity"]
    accuracies = ", ".join(f"{arm} {value:.3f}" for arm, value in parity["accuracy"].items())
    verdict = "agree" if parity["agree"] else "DO NOT AGREE"
    yield f"  accuracies {verdict}: spread {parity['spread']:.3f}, tolerance {parity['tolerance']:.3f} ({accuracies})"
    engines = ", ".join(f"{arm} {' and '.join(engines)}" for arm, engines in figures["engine"].items())
    yield f"  forward pass of {engines}"
    yield f"  {'median seconds':<24}{'work':>9}{'start':>9}{'(compile)':>11}{'all':>9}"
    for arm in figures["work_s"]:
        work, start, build, total = (figures[key][arm] for key in ("work_s", "start_s", "build_s", "total_s"))
        yield f"  {arm:<24}{work:>9.2f}{start:>9.2f}{build:>11.2f}{total:>9.2f}"
    yield f"  {'ratio':<24}{'work':>9}{'with start':>12}   aim (bare is {figures['bare']})"
    for name, value in figures["ratio"].items():
        yield f"  {name:<24}{value:>9.3f}{figures['ratio_with_start'][name]:>12.3f}   {AIMS[name]}"
    for name, value in figures["ratio_of_extraction"].items():
        yield f"  {name:<24}{value:>9.3f}{'':>12}   {AIMS[name]}, input + forward + write alone"
    arms = figures["where_s"]
    yield f"  {'where the time goes, s':<34}" + "".join(f"{arm:>12}" for arm in arms)
    for phase, meaning in PHASES.items():
        yield f"  {meaning:<34}" + "".join(f"{seconds.get(phase, 0.0):>12.2f}" for seconds in arms.values())
