"""What the driver does for each shard that it hands to an actor on Ray, with actors that do nothing.

    python -m scripts.bench.scale_tasks '[200, 2000]'

The driver's side is the project's own (`transfer/activations/ray_extract.py`); the actors answer at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from scripts.bench.scale_figures import Figures
from scripts.bench.scale_synthetic import configuration, shards_of
from transfer.activations.request import Extraction
from transfer.dataset.manifest import Shard

ACTORS = 4


class IdleActor:
    """Finds that everything is lacking, and computes nothing."""

    def __init__(self, config: Any, requests: Any, shards: Sequence[Shard], actors: int) -> None:
        del config, requests, actors
        self._shards = list(shards)

    def plan(self) -> tuple[list[Shard], Extraction]:
        """All shards lack something."""
        return self._shards, Extraction()

    def extract(self, shard: Shard) -> Extraction:
        """Answer at once."""
        return Extraction(images=shard.rows)


def main() -> None:
    import ray

    from transfer.activations import ray_extract
    from transfer.config import parse_config

    ray_extract.ExtractionActor = IdleActor  # type: ignore[assignment, misc]
    config = parse_config({**configuration("unused"), "workers": {"count": ACTORS}})
    ray.init(address="local", num_cpus=ACTORS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        found = [_hand_out(config, count).plain() for count in json.loads(sys.argv[1])]
    finally:
        ray.shutdown()
    print(json.dumps(found))


def _hand_out(config: Any, count: int) -> Figures:
    from transfer.activations.ray_extract import _Crew

    figures, shards = Figures(count), shards_of(count, 640)
    with figures.part("tasks"), _Crew(config, [], shards) as crew:
        with figures.step(f"start {ACTORS} actors and plan", "shards", count):
            missing, _ = crew.plan()
        answers = crew.extract(missing)
        # All actors are up when each has answered; then only handing out is timed.
        for _ in range(min(2 * ACTORS, count - 1)):
            next(answers)
        rest = count - min(2 * ACTORS, count - 1)
        with figures.step("hand out shards", "shards", rest):
            handed = sum(1 for _ in answers)
    if handed != rest:
        raise SystemExit(f"{handed} of {rest} shards were handed out")
    return figures


if __name__ == "__main__":
    main()
