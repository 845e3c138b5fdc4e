"""Which features are cached, and the streams that compute those that are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from transfer.backbone.blocks import cut_points, nodes_in_order
from transfer.catalog import layout
from transfer.dataset.manifest import Shard
from transfer.features.frozen import FrozenPart, View
from transfer.features.layout import read_description
from transfer.features.store import FeatureStore
from transfer.storage import Store


@dataclass(frozen=True)
class Stream:
    """One pass over some shards that computes `frozen_parts`, from pixels or from the cached features of `start`."""

    start: FrozenPart | None
    frozen_parts: tuple[FrozenPart, ...]
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Images that go through the network."""
        return sum(shard.rows for shard in self.shards)


class Inventory:
    """Which features are cached, as one listing of each frozen part found them and as it is noted here since then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shards: dict[str, set[str]] = {}
        self._starts: dict[tuple[int, View | None], FrozenPart] = {}

    def has(self, frozen_part: FrozenPart, shard: Shard) -> bool:
        """Whether the features of a shard are cached."""
        return shard.sha256 in self._of(frozen_part)

    def add(self, frozen_part: FrozenPart, shard: Shard) -> None:
        """Note that they are."""
        self._of(frozen_part).add(shard.sha256)
        if frozen_part.description not in self._described:
            self._described.append(frozen_part.description)

    def remove(self, frozen_part: FrozenPart, shard: Shard) -> None:
        """Note that they are not any more."""
        self._of(frozen_part).discard(shard.sha256)

    def starts(self, frozen_part: FrozenPart) -> list[FrozenPart]:
        """Earlier cuts whose features may be cached in float32, the nearest one first.

        Other jobs may have left them, so they are looked for by their descriptions. `has` then goes by the digest, and
        so finds nothing where the description is that of a network with other weights.
        """
        nodes = nodes_in_order(frozen_part.network)
        named = {description["cut"] for description in self._described}
        inner = [
            cut.tensor
            for cut in cut_points(nodes, frozen_part.network.outputs[0])[:-1]
            if nodes[cut.position].name in named and not nodes[cut.position].is_input
        ]
        candidates = [self._cut_at(tensor, frozen_part) for tensor in reversed(inner)]
        return [start for start in candidates if start.description in self._described]

    def plan(self, shards: Sequence[Shard], frozen_parts: Sequence[FrozenPart]) -> list[Stream]:
        """Streams after which everything is cached. Each starts from the nearest cut that is cached for its shards.

        Features of a shard that start at the same place are computed together.
        """
        missing = [(shard, [p for p in frozen_parts if not self.has(p, shard)]) for shard in shards]
        lacked = {frozen_part for _, lacking in missing for frozen_part in lacking}
        starts = {frozen_part: self.starts(frozen_part) for frozen_part in lacked}
        streams: dict[tuple[FrozenPart | None, tuple[FrozenPart, ...]], list[Shard]] = {}
        for shard, lacking in missing:
            together: dict[tuple[FrozenPart | None, View | None], list[FrozenPart]] = {}
            for frozen_part in lacking:
                start = next((start for start in starts[frozen_part] if self.has(start, shard)), None)
                together.setdefault((start, frozen_part.view), []).append(frozen_part)
            for (start, _), emitted in together.items():
                streams.setdefault((start, tuple(emitted)), []).append(shard)
        return [Stream(start, emitted, tuple(shards)) for (start, emitted), shards in streams.items()]

    def _of(self, frozen_part: FrozenPart) -> set[str]:
        if frozen_part.digest not in self._shards:
            self._shards[frozen_part.digest] = FeatureStore(self._store, frozen_part).shards()
        return self._shards[frozen_part.digest]

    def _cut_at(self, tensor: Any, frozen_part: FrozenPart) -> FrozenPart:
        """The frozen part that ends at an inner tensor of another one; always the same object, with its digest."""
        key = (id(tensor), frozen_part.view)
        if key not in self._starts:
            network = keras.Model(frozen_part.network.inputs[0], tensor)
            self._starts[key] = replace(frozen_part, network=network, dtype="float32")
        return self._starts[key]

    @cached_property
    def _described(self) -> list[dict[str, Any]]:
        """The descriptions of all frozen parts that have cached features."""
        found = (read_description(self._store, digest) for digest in self._store.folders(layout.FEATURES))
        return [description for description in found if description]
