"""Trials in words: what the page and the table on a terminal say alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from transfer.evaluation.templates import percent


def value_text(value: Any) -> str:
    """A value of the configuration as one would write it, numbers to three digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    return json.dumps(value, ensure_ascii=False)


def metric_text(value: float | None, metric: str) -> str:
    """A value of the sweep's metric; a dash where there is none."""
    if value is None:
        return "–"
    return percent(value) if metric == "accuracy" else f"{value:.4f}"


def depth_text(depth: Sequence[int | str]) -> str:
    """`unfreeze` of each phase, one after the other: `0 → 2`."""
    return " → ".join(map(str, depth))


def keys_of(values: Iterable[dict[str, Any]]) -> list[str]:
    """All keys that any trial tried, in the order in which they come up."""
    return list(dict.fromkeys(key for each in values for key in each))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last part, with as many before it as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        lengths = range(1, len(parts))
        length = next((n for n in lengths if all(other[-n:] != parts[-n:] for other in others)), len(parts))
        names[key] = ".".join(parts[-length:])
    return names


def is_better(value: float, than: float, metric: str) -> bool:
    """Whether one value of the metric is better than another."""
    return value > than if metric == "accuracy" else value < than
