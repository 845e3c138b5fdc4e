"""Extraction on Ray: actors that load the network once and take one shard after the other.

The driver never imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfer.config import Config
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import FeaturesError
from transfer.features.layout import Extraction, Request
from transfer.runtime.actors import Actors, Task
from transfer.runtime.progress import progress
from transfer.runtime.startup import import_tensorflow
from transfer.storage import open_store

if TYPE_CHECKING:
    from transfer.features.extract import Extractor
    from transfer.features.frozen import FrozenPart

Found = tuple[list[Shard], Extraction]
"""Shards that still lack something, and what was done and found for the others."""
TASK = Task("compute the frozen part", FeaturesError, "Repeat the command: cached features are found.")


def extract_on_cluster(config: Config, dataset: Dataset, requests: Sequence[Request]) -> Extraction:
    """Compute and cache the requested features that are not cached yet, on as many actors as training has replicas.

    They have ended when this returns, so that training finds their CPUs and GPUs free. Raises the TransferError that
    an actor met, FeaturesError when actors kept dying or did not start in time.
    """
    splits = {request.split for request in requests}
    if not any(shard.split in splits for shard in dataset.shards):
        return Extraction()
    # The trials of a sweep run on the cluster whatever `workers.count` is.
    workers = config.workers.model_copy(update={"count": max(1, config.workers.count)})
    actors = Actors[Any, Found](ExtractionWork, config, list(requests), dataset, workers=workers, task=TASK)
    with actors:
        # One actor finds what is lacking; where nothing is, it is the only one to start.
        ((_, (missing, done)),) = actors.map([None])
        if missing:
            with progress("frozen part", total=sum(shard.rows for shard in missing)) as advance:
                for shard, (_, extraction) in actors.map(missing):
                    done += extraction
                    advance(shard.rows)
    return done


class ExtractionWork:
    """Extraction as a unit of work: of a shard, or, for None, the search for shards that lack something."""

    def __init__(self, config: Config, requests: Sequence[Request], dataset: Dataset) -> None:
        import_tensorflow()

        from transfer.backbone.backbone import set_precision
        from transfer.backbone.random_start import base_for
        from transfer.features.extract import Extractor
        from transfer.features.frozen import frozen_parts_of

        set_precision(config.training.mixed_precision)
        store = open_store(config.storage)
        splits = {request.split for request in requests}
        self._shards = [shard for shard in dataset.shards if shard.split in splits]
        self._extractor: Extractor = Extractor(store, engine=config.features.engine)
        backbone = base_for(config, store, dataset)
        self._frozen_parts: dict[str, list[FrozenPart]] = frozen_parts_of(config, backbone, requests)

    def __call__(self, shard: Shard | None) -> Found:
        """Compute and cache what a shard lacks."""
        return ([], self._extract(shard)) if shard else self._plan()

    def _plan(self) -> Found:
        asked = [([s for s in self._shards if s.split == split], p) for split, p in self._frozen_parts.items()]
        streams = [stream for shards, frozen_parts in asked for stream in self._extractor.plan(shards, frozen_parts)]
        lacking = {shard.sha256 for stream in streams for shard in stream.shards}
        missing = [shard for shard in self._shards if shard.sha256 in lacking]
        return missing, Extraction.sum(self._extract(shard) for shard in self._shards if shard.sha256 not in lacking)

    def _extract(self, shard: Shard) -> Extraction:
        return self._extractor.extract([shard], self._frozen_parts.get(shard.split, []))
