"""The arm `floor` of `scripts.bench.sweep`: what a sweep cannot do without, measured in this one process.

One decode and one frozen pass over all images for all cuts, and the trials' own epochs at the speed of one trial that
has the machine to itself: its program compiled, the frozen part's output kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scripts.bench.sweep_task import Spans, Task, config_of
from transfer.config import Config
from transfer.dataset.manifest import Dataset, load_dataset
from transfer.storage import open_store

if TYPE_CHECKING:
    from transfer.training.workbench import Workbench

SPLITS = ("train", "validation")
Costs = dict[str, float]


class Cost:
    """CPU-seconds of this process, and seconds."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    @contextmanager
    def counted(self, sign: int = 1) -> Iterator[None]:
        """Count the block; with sign -1, do not count it within one that is."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        yield
        self.cpu_s += sign * (time.process_time() - cpu_s)
        self.wall_s += sign * (time.perf_counter() - wall_s)

    def times(self, factor: float) -> Costs:
        """So many times what was counted."""
        return {"cpu_s": factor * self.cpu_s, "wall_s": factor * self.wall_s}


def floor(task: Task, _: Spans) -> dict[str, Any]:
    """Costs of the extraction, and of all trials of each depth."""
    from transfer.training.strategy import create_strategy
    from transfer.training.workbench import Workbench
    from transfer.tuning.space import with_values

    config = config_of(task)
    dataset = load_dataset(open_store(config.storage), config.dataset_name)
    workbench = Workbench(create_strategy())
    # One epoch more, for the first one compiles.
    changes = {"phases.0.epochs": task.epochs + 1, "activations.keep": "always"}
    by_depth = {depth: with_values(config, {**changes, "phases.0.unfreeze": depth}) for depth in task.depths}
    costs = {"extract": extraction(list(by_depth.values()), dataset, workbench).times(1)}
    for depth, of_depth in by_depth.items():
        costs[f"depth {depth}"] = epochs(of_depth, dataset, workbench).times(len(task.rates))
    return {"costs": costs}


def extraction(configs: Sequence[Config], dataset: Dataset, workbench: Workbench) -> Cost:
    """One pass over the images for all cuts, the building of its program left out."""
    from transfer.activations import extract
    from transfer.activations.request import requests_of

    cost = Cost()
    build_forward = extract.build_forward

    def built(*args: Any, **kwargs: Any) -> Any:
        with cost.counted(-1):
            return build_forward(*args, **kwargs)

    extract.build_forward = built
    store = open_store(configs[0].storage)
    with workbench.strategy.scope():
        backbone = workbench.model(configs[0], dataset.classes).backbone
        requests = [request for config in configs for request in requests_of(config, config.phases[0])]
        extractor = extract.Extractor(store, engine=configs[0].activations.engine)
        with cost.counted():
            for split, prefixes in extract.prefixes_of(configs[0], backbone, requests).items():
                extractor.extract(dataset.shards_of(split), prefixes, rows=sum(dataset.rows(split) for split in SPLITS))
    return cost


def epochs(config: Config, dataset: Dataset, workbench: Workbench) -> Cost:
    """All epochs of a trial but its first, with validation and checkpoints."""
    from transfer.training.loop import Training
    from transfer.training.run import open_run

    run = open_run(open_store(config.storage), config, dataset)
    training = Training(run, dataset, workbench=workbench)
    training.next_epoch()
    cost = Cost()
    while not training.complete:
        with cost.counted():
            training.next_epoch()
    return cost
