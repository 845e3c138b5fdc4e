"""The networks that a screen compares: parts of a command line as configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer.config import Config, parse_config
from transfer.config.paths import anchor, is_model_file
from transfer.errors import ConfigError


@dataclass(frozen=True)
class Candidate:
    """A network, as `name` or `name@size`, and the configuration that would train it.

    `changes`: keys of `base` that differ from those of the screen's configuration, and the model.
    """

    title: str
    config: Config
    changes: Mapping[str, Any]

    def settings(self, tap: str | None) -> tuple[str, ...]:
        """The arguments of `--set` that train with it, from the layer `tap` or from its end."""
        changes = {**self.changes, "tap": tap} if tap else self.changes
        return tuple(
            f"base.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()
        )


def candidates_of(config: Config, bases: list[str]) -> list[Candidate]:
    """The candidates of a screen: `base.model` of each, with its own image size after an `@`.

    All other keys of `base` are those of `config` if the network is its own. Otherwise those that belong to one network
    have their defaults. Raises ConfigError for none, for one that is named twice, and for a size that is no number.
    """
    named = [base.strip() for base in bases if base.strip()]
    if not named:
        raise ConfigError("There is no network to screen.", advice="Give some: --bases MobileNetV2,EfficientNetLite0")
    for place, title in enumerate(named):
        if title in named[:place]:
            raise ConfigError(f"`{title}` is among the networks to screen twice.", advice="Name each once.")
    return [_candidate(config, title) for title in named]


def _candidate(config: Config, title: str) -> Candidate:
    model, at, size = title.rpartition("@")
    if not at or "/" in size:
        model, size = title, ""
    elif not size.isdecimal():
        raise ConfigError(
            f"`{title}` has `{size}` as its image size, which is no number of pixels.",
            advice="Write a network with its own size as NAME@SIZE, such as MobileNetV2@160.",
        )
    place: dict[str, Any] = {"base": {"model": model}}
    anchor(place, Path.cwd())
    model = place["base"]["model"]
    before = config.model_dump(mode="json")
    base = {**before["base"], "model": model}
    if model != config.base.model:
        # A file of weights and options of a constructor belong to one network, and `none` is wanted for all.
        weights = "none" if config.base.weights == "none" and not is_model_file(model) else "imagenet"
        base |= {"weights": weights, "options": {}, "tap": None, "preprocessing": "auto", "accept_head": False}
        base["custom_objects"] = None
    if size:
        base["image_size"] = int(size)
    changes = {key: value for key, value in base.items() if key == "model" or value != before["base"].get(key)}
    return Candidate(title, parse_config({**before, "base": base}), changes)
