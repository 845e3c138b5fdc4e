"""Extraction on Ray: actors that load the network once and take one shard after the other.

A shard is the unit of retry: that of an actor which died goes to whichever is free next, and another actor is started
in the dead one's place. The driver never imports TensorFlow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import floor
from typing import TYPE_CHECKING, Any, Self

import ray

from transfer.config import Config
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import FeaturesError, TransferError
from transfer.features.layout import Extraction, Request
from transfer.runtime.cluster import S3_ENVIRONMENT, anywhere
from transfer.runtime.fork_server import WITHOUT_GPU
from transfer.runtime.progress import progress
from transfer.runtime.startup import start_worker
from transfer.storage import open_store

if TYPE_CHECKING:
    from transfer.features.extract import Extractor
    from transfer.features.frozen import FrozenPart

_ENVIRONMENT = {**S3_ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2"}
# Ray hides no GPU from an actor that asked for none, and TensorFlow takes all the memory of those it sees.


def extract_on_cluster(config: Config, dataset: Dataset, requests: Sequence[Request]) -> Extraction:
    """Compute and cache the requested features that are not cached yet, on as many actors as training has replicas.

    They have ended when this returns, so that training finds their CPUs and GPUs free. Raises the TransferError that
    an actor met, FeaturesError when actors kept dying or did not start in time.
    """
    splits = {request.split for request in requests}
    shards = [shard for shard in dataset.shards if shard.split in splits]
    if not shards:
        return Extraction()
    with _Crew(config, requests, shards) as crew:
        missing, done = crew.plan()
        if missing:
            with progress("frozen part", total=sum(shard.rows for shard in missing)) as advance:
                for shard, extraction in crew.extract(missing):
                    done += extraction
                    advance(shard.rows)
    return done


class ExtractionActor:
    """What runs in a process of its own on a machine of the cluster."""

    def __init__(self, config: Config, requests: Sequence[Request], shards: Sequence[Shard]) -> None:
        # Nothing that can fail: an error of a constructor reaches the driver as text only.
        self._config = config
        self._requests = requests
        self._shards = shards

    def plan(self) -> tuple[list[Shard], Extraction]:
        """The shards that lack something, and what was found for the others."""
        extractor = self._extractor
        asked = [([s for s in self._shards if s.split == split], p) for split, p in self._frozen_parts.items()]
        streams = [stream for shards, frozen_parts in asked for stream in extractor.plan(shards, frozen_parts)]
        lacking = {shard.sha256 for stream in streams for shard in stream.shards}
        missing = [shard for shard in self._shards if shard.sha256 in lacking]
        return missing, Extraction.sum(self.extract(shard) for shard in self._shards if shard.sha256 not in lacking)

    def extract(self, shard: Shard) -> Extraction:
        """Compute and cache what a shard lacks."""
        return self._extractor.extract([shard], self._frozen_parts.get(shard.split, []))

    @cached_property
    def _frozen_parts(self) -> dict[str, list[FrozenPart]]:
        """The frozen parts whose features are requested, by split."""
        start_worker()

        from transfer.backbone.backbone import set_precision
        from transfer.backbone.load import build_backbone
        from transfer.features.frozen import frozen_parts_of

        config = self._config
        set_precision(config.training.mixed_precision)
        return frozen_parts_of(config, build_backbone(config), self._requests)

    @cached_property
    def _extractor(self) -> Extractor:
        from transfer.features.extract import Extractor

        return Extractor(open_store(self._config.storage), engine=self._config.features.engine)


class _Crew:
    """The actors at work: which of them are idle, and which answers are awaited of the others."""

    def __init__(self, config: Config, requests: Sequence[Request], shards: Sequence[Shard]) -> None:
        self._workers = config.workers
        self._size = min(config.workers.replicas, len(shards))
        # Once for all actors: the shards of a large dataset take a second to pickle.
        self._arguments = (config, list(requests), ray.put(list(shards)))
        self._idle: list[Any] = []
        self._awaited: dict[Any, tuple[Any, Shard | None]] = {}
        """By the reference of the answer: the actor, and the shard it works on; None when it is starting."""
        self._queue: deque[Shard] = deque()
        self._deaths = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._awaited.values())]:
            ray.kill(actor)

    def plan(self) -> tuple[list[Shard], Extraction]:
        """The shards that lack something, as one actor finds them; where nothing does, it is the only one to start."""
        self._start()
        _, answer = self._next_answer()
        found: tuple[list[Shard], Extraction] = answer
        return found

    def extract(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, Extraction]]:
        """Yield each shard when it is done, and what was done."""
        self._queue.extend(shards)
        for _ in range(min(self._size, len(shards)) - 1):
            self._start()
        while self._queue or any(shard for _, shard in self._awaited.values()):
            self._hand_out()
            shard, answer = self._next_answer()
            if shard is not None:
                yield shard, answer

    def _start(self) -> None:
        """Start an actor. It has no shard before it answers for the first time: a full cluster may keep it waiting."""
        workers = self._workers
        gpus = min(workers.gpus_per_worker, 1)
        # Ray counts CPUs in steps of 1/10,000; together the actors need no more than training does.
        cpus = floor(workers.cpus_per_worker / max(workers.gpus_per_worker, 1) * 10_000) / 10_000
        create = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            scheduling_strategy=anywhere(),
            runtime_env={"env_vars": _ENVIRONMENT if gpus else {**_ENVIRONMENT, **WITHOUT_GPU}},
        )(ExtractionActor)
        actor = create.remote(*self._arguments)
        self._awaited[actor.plan.remote()] = (actor, None)

    def _hand_out(self) -> None:
        while self._idle and self._queue:
            actor, shard = self._idle.pop(), self._queue.popleft()
            self._awaited[actor.extract.remote(shard)] = (actor, shard)

    def _next_answer(self) -> tuple[Shard | None, Any]:
        """Wait for an answer; returns it and the shard it is for."""
        while True:
            is_working = any(shard for _, shard in self._awaited.values())
            ready, _ = ray.wait(list(self._awaited), timeout=None if is_working else self._workers.start_timeout_s)
            if not ready:
                workers = self._workers
                raise FeaturesError(
                    f"No worker to compute the frozen part started in {workers.start_timeout_s:g} s.",
                    advice=f"It needs {workers.cpus_per_worker:g} CPU and {workers.gpus_per_worker} GPU for each "
                    "worker (see `ray status`), or set workers.start_timeout_s higher.",
                )
            actor, shard = self._awaited.pop(ready[0])
            try:
                answer = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, TransferError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                self._replace(shard, error)
            else:
                self._idle.append(actor)
                return shard, answer

    def _replace(self, shard: Shard | None, error: Exception) -> None:
        """Put another actor in the place of one that died; its shard is the next to be handed out."""
        self._deaths += 1
        if self._deaths > self._workers.max_failures:
            raise FeaturesError(
                f"Workers that compute the frozen part died {self._deaths} times ({type(error).__name__}).",
                advice="Usually a machine is out of memory. Repeat the command: cached features are found.",
            ) from error
        if shard is not None:
            self._queue.appendleft(shard)
        self._start()
        self._hand_out()
