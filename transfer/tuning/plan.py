"""The plan of a sweep: its trials, their values, their scheduler, and the packs that are trained as one program.

Also the cached features that all trials need, which are computed before the first trial starts. Only this part needs
TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transfer.config import Config, Decides, DomainConfig, Varies, deciding
from transfer.dataset.manifest import Dataset
from transfer.features.layout import Request
from transfer.training.rows import Fold
from transfer.training.run import hold_to_base, open_run
from transfer.tuning.records import Sweep, value_text
from transfer.tuning.space import Trial, depths_within_reach, fixed_trials, longest_epochs, space_of, sweep_of

if TYPE_CHECKING:
    from transfer.training.model import TransferModel


def trials_at_once(config: Config, workers: int) -> int:
    """Number of trials, of `workers` each, that run at once. The process must be connected to the cluster."""
    import ray

    resources, gpus = ray.cluster_resources(), gpus_of_trial(config)
    room = int(resources.get("CPU", 0) // (workers * config.workers.cpus_per_worker))
    if gpus:
        # Without the addend, rounding could lose one of ten shares of 0.1.
        room = min(room, int(resources.get("GPU", 0) / (workers * gpus) + 1e-6))
    settings = sweep_of(config)
    return max(1, min(room, settings.concurrency or room, settings.trial_count))


def gpus_of_trial(config: Config) -> float:
    """Number of GPUs of a process that trains trials; it may be a fraction."""
    return sweep_of(config).gpus_per_trial or float(config.workers.gpus_per_worker)


def pack_key(config: Config) -> str | None:
    """A digest of all that the trials of one pack have in common; None for a trial that must be trained alone.

    A trial can be packed if it trains only its head, in one phase, on cached features. Two trials of one dataset
    version with the same key differ only in learning rate, weight decay, dropout, L2 penalty, label smoothing and seed,
    so they train on the same features. The key does not cover the files of the base: packs are stored in the folder of
    their sweep, and the sweep's id covers these files.
    """
    phase = config.phases[0]
    augmented = phase.augment and config.augmentation.is_active
    packable = (
        len(config.phases) == 1
        and phase.unfreeze == 0
        and config.training.mixed_precision == "off"
        and config.features.cache != "never"
        and (not augmented or config.augmentation.views > 0)
    )
    if not packable:
        return None
    common = deciding(config, Decides.DATA, Decides.FEATURES, Decides.LEARNING, but=Varies.IN_PACK)
    del common["name"]  # All trials of a sweep have the same.
    if augmented:
        # The seed decides the views, too, and so their features.
        common["views_seed"] = config.training.seed
    return hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:16]


def folds_of(config: Config) -> list[Fold | None]:
    """The folds of a trial, each of which has its own run; [None] if trials are validated on the validation split."""
    count = sweep_of(config).folds
    return [Fold(index, count) for index in range(count)] or [None]


def comes_to_all_phases(config: Config) -> bool:
    """Whether every trial trains all of its phases, so that one pass over the images computes features for all."""
    return sweep_of(config).scheduler.kind == "none"


def requests_of_trials(
    sweep: Sweep, dataset: Dataset, trials: Sequence[Trial], *, model_of: Callable[[Config], TransferModel]
) -> list[Request]:
    """The features to cache before the first trial starts: those of each phase that every trial reaches.

    `trials`: all trials, or empty if they are not known. `model_of`: returns the untrained model of a configuration.
    """
    from transfer.training.feature_plan import FeaturePlan

    def seen_by(config: Config) -> tuple[object, ...]:
        """Everything but the depth that decides the frozen part's output."""
        features = deciding(config, Decides.FEATURES)
        del features["phases"]  # Depth, and whether a phase augments.
        return features, config.augmentation.views

    known = [trial.config for trial in trials] or depths_within_reach(sweep.config)
    # The features of a trial with another base are computed when it starts.
    usual = [config for config in known if seen_by(config) == seen_by(sweep.config)]
    by_depth = {str([phase.unfreeze for phase in config.phases]): config for config in reversed(usual)}
    found: dict[Request, None] = {}
    for config in reversed(by_depth.values()):
        run = open_run(sweep.store, config, dataset, fold=folds_of(sweep.config)[0], started_by=sweep.folder)
        model = model_of(config)
        hold_to_base(run, model.digest)
        inputs = FeaturePlan(run, dataset, model)
        inputs.claim()
        found.update(dict.fromkeys(inputs.requests(None if comes_to_all_phases(sweep.config) else [0])))
    return list(found)


_SHOWN = 12
_PHASES_SHOWN = 6


def sweep_plan(config: Config) -> dict[str, Any]:
    """The plan, of JSON's own types. If `workers.count` is not 0, this process must be connected to the cluster."""
    sweep, trials = sweep_of(config), fixed_trials(config)
    # Trials that each have several workers are not packed.
    keys = Counter(pack_key(trial.config) for trial in trials or () if config.workers.count < 2)
    packs = [size for key, size in keys.items() if key is not None and size > 1]
    within_reach = [trial.config for trial in trials] if trials else depths_within_reach(config)
    return {
        "trials": sweep.trial_count,
        "combinations": sweep.combinations,
        "search": sweep.search,
        "space": {key: domain.model_dump(mode="json", exclude_none=True) for key, domain in space_of(config).items()},
        "metric": sweep.metric,
        "folds": sweep.folds,
        "scheduler": sweep.scheduler.model_dump(mode="json", exclude_none=True),
        "budget": sweep.model_dump(mode="json", include={"max_epochs", "max_seconds", "target"}, exclude_none=True),
        "at_once": trials_at_once(config, config.workers.count) if config.workers.count else 1,
        "packed": {"trials": sum(packs), "packs": len(packs)},
        # In words what the phases of a trial train, for each combination that a trial may have.
        "phases": [list(p) for p in dict.fromkeys(tuple(p.title for p in each.phases) for each in within_reach)],
        "epochs": longest_epochs(config),
    }


def plan_for_people(plan: dict[str, Any], config: Config) -> dict[str, Any]:
    """A plan in lines, for `transfer.cli.output`."""
    sweep = sweep_of(config)
    of_all = f" of {plan['combinations']:,} combinations" if plan["combinations"] else ""
    judged = f"over {plan['folds']} folds" if plan["folds"] else "on the validation split"
    trials = "1 trial" if plan["trials"] == 1 else f"{plan['trials']:,} trials"
    now = " (what the cluster has room for now)" if config.workers.count else ""
    phases = [" → ".join(titles) for titles in plan["phases"]]
    more = f"; and {len(phases) - _PHASES_SHOWN:,} more" if len(phases) > _PHASES_SHOWN else ""
    return {
        "sweep": f"{trials}{of_all}, {plan['search']} search; the best {plan['metric']} {judged} wins",
        "searched": "; ".join(f"{key}: {_domain_text(domain)}" for key, domain in sweep.space.items()),
        "scheduler": _scheduler_text(plan["scheduler"]),
        "sweep_ends": _budget_text(plan["budget"]),
        "at_once": f"{plan['at_once']:,}{now}",
        "packed": _packed_text(plan, config),
        "phases_of_trials": f"{'; '.join(phases[:_PHASES_SHOWN])}{more}: up to {plan['epochs']:,} epochs",
    }


def _domain_text(domain: DomainConfig) -> str:
    if domain.choices is not None:
        more = f", … ({len(domain.choices):,})" if len(domain.choices) > _SHOWN else ""
        return ", ".join(map(value_text, domain.choices[:_SHOWN])) + more
    low, high = (value_text(end) for end in domain.ends or ())
    kind = "integers" if domain.integers else "log_uniform" if domain.log_uniform else "uniform"
    return f"{low} to {high} ({kind})"


def _scheduler_text(scheduler: dict[str, Any]) -> str:
    options = ", ".join(f"{name} {value:g}" for name, value in scheduler.items() if name != "kind")
    return f"{scheduler['kind']} ({options})" if options else "none: every trial trains all its epochs"


def _budget_text(budget: dict[str, float]) -> str:
    rules = {
        "max_epochs": "after {:,} epochs over all trials",
        "max_seconds": "after {:,} seconds",
        "target": "when a trial reaches {:g}",
    }
    return ", or ".join(["when all trials ended", *(rules[name].format(value) for name, value in budget.items())])


def _packed_text(plan: dict[str, Any], config: Config) -> str:
    packed = plan["packed"]
    if not packed["trials"]:
        return "none: each trial is trained alone"
    condition = ", where features are cached" if config.features.cache == "auto" else ""
    packs = "1 pack" if packed["packs"] == 1 else f"{packed['packs']:,} packs"
    return f"{packed['trials']:,} of {plan['trials']:,} trials, in {packs}, each trained as one program{condition}"
