"""What is kept in a store, and from where what is missing can be computed with the least work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from transfer.activations.kept import Kept, description_of
from transfer.activations.layout import DESCRIPTION, ROOT
from transfer.activations.prefix import Prefix, View
from transfer.backbone.graph import cut_points, nodes_in_order
from transfer.dataset.manifest import Shard
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import Store, read_document


@dataclass(frozen=True)
class Stream:
    """One way through some shards that gives the outputs of `prefixes`, from pixels or from what is kept of `start`."""

    start: Prefix | None
    prefixes: tuple[Prefix, ...]
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """Images that go through the network."""
        return sum(shard.rows for shard in self.shards)


class Inventory:
    """What is kept of prefixes, as one listing of each found it and as it is noted here since then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shards: dict[str, set[str]] = {}
        self._starts: dict[tuple[int, View | None], Prefix] = {}

    def has(self, prefix: Prefix, shard: Shard) -> bool:
        """Whether the outputs of a prefix for a shard are kept."""
        return shard.sha256 in self._of(prefix)

    def add(self, prefix: Prefix, shard: Shard) -> None:
        """Note that they are."""
        self._of(prefix).add(shard.sha256)
        if (description := description_of(prefix)) not in self._described:
            self._described.append(description)

    def remove(self, prefix: Prefix, shard: Shard) -> None:
        """Note that they are not any more."""
        self._of(prefix).discard(shard.sha256)

    def starts(self, prefix: Prefix) -> list[Prefix]:
        """Earlier cuts whose outputs may be kept in float32, the nearest one first.

        Other jobs may have left them, so they are looked for by their descriptions. `has` then goes by the digest, and
        so finds nothing where the description is that of a network with other weights.
        """
        nodes = nodes_in_order(prefix.network)
        named = {description["cut"] for description in self._described}
        inner = [
            cut.tensor
            for cut in cut_points(nodes, prefix.network.outputs[0])[:-1]
            if nodes[cut.position].name in named and not nodes[cut.position].is_input
        ]
        candidates = [self._cut_at(tensor, prefix) for tensor in reversed(inner)]
        return [start for start in candidates if description_of(start) in self._described]

    def plan(self, shards: Sequence[Shard], prefixes: Sequence[Prefix]) -> list[Stream]:
        """Streams after which everything is kept. Each output is computed from the nearest cut that its shard has kept.

        Outputs of a shard that start at the same place are computed together.
        """
        missing = [(shard, [p for p in prefixes if not self.has(p, shard)]) for shard in shards]
        lacked = {prefix for _, lacking in missing for prefix in lacking}
        starts = {prefix: self.starts(prefix) for prefix in lacked}
        streams: dict[tuple[Prefix | None, tuple[Prefix, ...]], list[Shard]] = {}
        for shard, lacking in missing:
            together: dict[tuple[Prefix | None, View | None], list[Prefix]] = {}
            for prefix in lacking:
                start = next((start for start in starts[prefix] if self.has(start, shard)), None)
                together.setdefault((start, prefix.view), []).append(prefix)
            for (start, _), emitted in together.items():
                streams.setdefault((start, tuple(emitted)), []).append(shard)
        return [Stream(start, emitted, tuple(shards)) for (start, emitted), shards in streams.items()]

    def _of(self, prefix: Prefix) -> set[str]:
        if prefix.digest not in self._shards:
            self._shards[prefix.digest] = Kept(self._store, prefix).shards()
        return self._shards[prefix.digest]

    def _cut_at(self, tensor: Any, prefix: Prefix) -> Prefix:
        """The prefix that ends at an inner tensor of another one; always the same object, whose digest is known."""
        key = (id(tensor), prefix.view)
        if key not in self._starts:
            network = keras.Model(prefix.network.inputs[0], tensor)
            self._starts[key] = replace(prefix, network=network, dtype="float32")
        return self._starts[key]

    @cached_property
    def _described(self) -> list[dict[str, Any]]:
        """The descriptions of all prefixes of which something is kept."""
        found = []
        for item in self._store.list(f"{ROOT}/"):
            if item.name.endswith(f"/{DESCRIPTION}"):
                try:
                    found.append(read_document(self._store, item.name))
                except (CorruptObjectError, ObjectNotFoundError):
                    continue  # It only spares work, and may be removed at any time.
        return found
