"""The search space of a sweep: values for keys of the configuration, and the configurations of trials.

Every draw is a hash of the sweep's seed, the trial's number and the key. So it is the same on any machine and in any
version of Python, and a sweep with more trials begins with the same trials.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from transfer.config import (
    BaseNetworkConfig,
    Config,
    DomainConfig,
    PhaseConfig,
    SweepConfig,
    Varies,
    keys_that_vary,
    parse_config,
    set_key,
)
from transfer.errors import ConfigError

# A point inside a domain. With this irrational share it is hardly ever an integer, so wrong types are found.
_INNER_SHARE = 0.381966
# Significant digits of draws. Rounding hides differences of machines in the last bits, which would make another run.
_DIGITS = 6


@dataclass(frozen=True)
class Trial:
    """One combination of values, and the configuration of its run."""

    number: int
    """From 1."""
    values: dict[str, Any]
    """By dotted key of the configuration."""
    config: Config
    """The sweep's configuration with these values, without its section `sweep`."""


def sweep_of(config: Config) -> SweepConfig:
    """The section `sweep`. Raises ConfigError if there is none."""
    if config.sweep is None:
        raise ConfigError(
            f"The configuration `{config.name}` has no section `sweep`.",
            advice="Add what to search, as in sweep: {space: {phases.0.learning_rate: [1.0e-4, 1.0e-3]}}.",
        )
    return config.sweep


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration of one trial. Raises ConfigError, which names the key, if a value is not valid."""
    document = config.model_dump(mode="json", exclude={"sweep"})
    for key, value in values.items():
        set_key(document, key, value, name=f"sweep.space.{key}")
    shown = ", ".join(f"{key}={value}" for key, value in values.items())
    return parse_config(document, name=f"sweep.space: with {shown}, `{config.name}`")


def make_trial(config: Config, number: int, values: Mapping[str, Any]) -> Trial:
    """A trial with these values. Raises what `with_values` raises."""
    return Trial(number, dict(values), with_values(config, values))


def space_of(config: Config) -> dict[str, DomainConfig]:
    """The domain of each key. Choices have the configuration's types: `1e-3`, a text for YAML, is a number here."""
    return {key: _as_read(config, key, domain) for key, domain in sweep_of(config).space.items()}


def check_space(config: Config) -> None:
    """Raise ConfigError, before any work is done, if the sweep cannot run or an option of it would have no effect.

    Every key must exist. Every choice and both ends of every domain must make a valid configuration.
    """
    for key, domain in space_of(config).items():
        for index, value in enumerate(_probes(domain)):
            probe = with_values(config, {key: value})
            if sweep_of(config).folds:
                _check_folds(probe)
            if domain.choices is not None and value in domain.choices[:index]:
                raise ConfigError(f"sweep.space.{key}: `{value}` stands twice.", advice="Give each choice once.")
    _check_scheduler(config, sweep_of(config))


def fixed_trials(config: Config) -> list[Trial] | None:
    """All trials of a grid or a random search; None if values depend on results (Optuna, population based training)."""
    sweep = sweep_of(config)
    if sweep.search == "optuna" or sweep.scheduler.kind == "pbt":
        return None
    if sweep.search == "random":
        values = drawn(config)
    else:
        space = space_of(config)
        combinations = itertools.product(*(_all_of(domain) for domain in space.values()))
        values = [dict(zip(space, combination, strict=True)) for combination in combinations]
    return [make_trial(config, number, found) for number, found in enumerate(values, start=1)]


def depths_within_reach(config: Config) -> list[Config]:
    """One configuration for each combination of `unfreeze` depths in the space, also if whole phases are searched."""
    searched = {key: _all_of(domain) for key, domain in space_of(config).items() if _sets_depths(key)}
    combinations = itertools.product(*searched.values())
    return [with_values(config, dict(zip(searched, values, strict=True))) for values in combinations]


def _sets_depths(key: str) -> bool:
    """Whether a searched key is the depth of a phase, a phase or all phases."""
    return key.endswith(".unfreeze") or key == "phases" or key.rpartition(".")[0] == "phases"


def searched_phases(config: Config) -> dict[str, list[PhaseConfig]]:
    """The phases in the space that differ in depth or adapters, by the searched key that sets them.

    Empty if bases are searched, too, because the number of blocks then depends on the trial.
    """
    space = space_of(config)
    if any(key.partition(".")[0] == "base" for key in space):
        return {}
    found = {}
    for key, domain in space.items():
        # Depths are set by `phases`, `phases.0` and `phases.0.unfreeze`. Only the last one can have a range of numbers.
        # Which layers get adapters is set by `phases.0.lora` and `phases.0.lora.targets`, too.
        values = _all_of(domain) if key.endswith(".unfreeze") else domain.choices or ()
        if key.partition(".")[0] == "phases" and values:
            probes = [with_values(config, {key: value}) for value in values]
            phases = [phase for probe in probes for phase in probe.phases]
            found[key] = list({(phase.unfreeze, phase.lora): phase for phase in phases}.values())
    return found


def bases_within_reach(config: Config) -> dict[str, list[BaseNetworkConfig]]:
    """The sections `base` in the space, by the key of `base` that is searched over choices."""
    return {
        key: [with_values(config, {key: value}).base for value in domain.choices]
        for key, domain in sweep_of(config).space.items()
        if key.partition(".")[0] == "base" and domain.choices is not None
    }


def drawn(config: Config) -> list[dict[str, Any]]:
    """Values of each trial of a random search. No combination comes twice."""
    sweep, space = sweep_of(config), space_of(config)
    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    for number in range(1, sweep.trial_count + 1):
        found.append(draw(space, sweep.seed, number, taken))
        taken.add(repr(found[-1]))
    return found


def draw(space: Mapping[str, DomainConfig], seed: int, number: int, taken: Container[str] = ()) -> dict[str, Any]:
    """Random values for a trial. `taken`: the `repr` of combinations not to repeat; another one must exist.

    Combinations with continuous values are not compared: they hardly ever repeat, and a narrow domain may have no
    other.
    """
    finite = all(domain.size is not None for domain in space.values())
    for attempt in itertools.count():
        values = {key: at(domain, share(seed, number, attempt, key)) for key, domain in space.items()}
        if not finite or repr(values) not in taken:
            break
    return values


def share(*decided_by: object) -> float:
    """A pseudorandom number in [0, 1) that depends only on the arguments."""
    digest = hashlib.sha256("\n".join(map(str, decided_by)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def at(domain: DomainConfig, share: float) -> Any:
    """The value of a domain at a share (0 up to 1) of its range."""
    if domain.choices is not None:
        return domain.choices[int(share * len(domain.choices))]
    if domain.integers is not None:
        first, last = domain.integers
        return first + int(share * (last - first + 1))
    if domain.log_uniform is not None:
        low, high = domain.log_uniform
        return clipped(domain, low * (high / low) ** share)
    low, high = domain.uniform or (0.0, 1.0)
    return clipped(domain, low + share * (high - low))


def clipped(domain: DomainConfig, value: float) -> float:
    """A number, rounded and limited to the ends of a domain."""
    rounded = round(value) if domain.integers is not None else float(f"{value:.{_DIGITS}g}")
    low, high = domain.ends or (rounded, rounded)
    return min(max(rounded, low), high)


def longest_epochs(config: Config) -> int:
    """Epochs of the longest trial that the space allows, over all its phases."""
    longest = config
    for key, domain in sweep_of(config).space.items():
        candidates = [with_values(longest, {key: value}) for value in _probes(domain)]
        longest = max(candidates, key=_epochs)
    return _epochs(longest)


def _epochs(config: Config) -> int:
    return sum(phase.epochs for phase in config.phases)


def _all_of(domain: DomainConfig) -> Sequence[Any]:
    if domain.choices is not None:
        return domain.choices
    low, high = domain.integers or (0, -1)
    return range(low, high + 1)


def _probes(domain: DomainConfig) -> list[Any]:
    return domain.choices if domain.choices is not None else [*(domain.ends or ()), at(domain, _INNER_SHARE)]


def _as_read(config: Config, key: str, domain: DomainConfig) -> DomainConfig:
    if domain.choices is None:
        return domain
    choices = []
    for given in domain.choices:
        found: Any = with_values(config, {key: given}).model_dump(mode="json")
        for part in key.split("."):
            found = found[int(part)] if isinstance(found, list) else found.get(part)
        # Short forms (`optimizer: adam`) and whole sections stay as they are written.
        choices.append(given if isinstance(found, dict | list) else found)
    return domain.model_copy(update={"choices": choices})


def _check_folds(config: Config) -> None:
    """Raise ConfigError if trials cannot be cross-validated. Depths are checked later, when the network is known."""
    if config.workers.count > 1:
        raise ConfigError(
            f"sweep.folds is set and workers.count is {config.workers.count}: one worker trains all folds.",
            advice="Set workers.count to 0 or 1, or sweep.folds to 0.",
        )
    if config.features.cache == "never":
        raise ConfigError(
            "sweep.folds is set and features.cache is `never`: folds train on cached features.",
            advice="Set features.cache to `auto` or `always`, or sweep.folds to 0.",
        )
    if config.augmentation.is_active and any(phase.augment for phase in config.phases):
        raise ConfigError(
            "sweep.folds is set and a phase augments its images: folds share one cached feature of each image.",
            advice="Leave `augmentation` out, or set `augment: false` in every phase, or set sweep.folds to 0.",
        )
    if config.training.warm_start is not None:
        raise ConfigError(
            f"sweep.folds is set and training.warm_start is `{config.training.warm_start}`, which "
            "was trained on images that folds validate on.",
            advice="Leave warm_start out, or set sweep.folds to 0.",
        )


def _check_scheduler(config: Config, sweep: SweepConfig) -> None:
    scheduler, epochs = sweep.scheduler, longest_epochs(config)
    for option in ("grace_epochs", "interval_epochs"):
        value = getattr(scheduler, option)
        if value is not None and value >= epochs:
            raise ConfigError(
                f"sweep.scheduler.{option} is {value} and the longest trial has {epochs} epochs: `{scheduler.kind}` "
                "would never act.",
                advice=f"Set {option} below the epochs of the phases, or set `scheduler: none`.",
            )
    others = sweep.trial_count - 1
    if scheduler.min_trials is not None and scheduler.min_trials > others:
        raise ConfigError(
            f"sweep.scheduler.min_trials is {scheduler.min_trials}, and each trial has only {others} others: `median` "
            "would never act.",
            advice="Lower min_trials, raise sweep.trials, or set `scheduler: none`.",
        )
    if scheduler.kind == "pbt":
        _check_population(config, sweep)


def _check_population(config: Config, sweep: SweepConfig) -> None:
    if sweep.trial_count < 2:
        raise ConfigError(
            "sweep.scheduler is `pbt` and there is one trial, which has no other to copy.", advice="Raise sweep.trials."
        )
    if config.workers.count > 1:
        raise ConfigError(
            f"sweep.scheduler is `pbt` and workers.count is {config.workers.count}: `pbt` copies weights between "
            "trials that are each trained by one worker.",
            advice="Set workers.count to 0 or 1, or choose another scheduler.",
        )
    changeable = keys_that_vary(Config, Varies.IN_TRAINING)
    for key in sweep.space:
        if not any(fnmatchcase(key, pattern) for pattern in changeable):
            raise ConfigError(
                f"sweep.space.{key} cannot change during training, as `scheduler: pbt` requires. Keys that can: "
                f"{', '.join(changeable)}.",
                advice="Leave the key out, or choose another scheduler.",
            )
