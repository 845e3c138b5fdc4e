"""Computing what is not kept yet: one stream over the images that lack something, shard by shard."""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal, TypeVar

import numpy as np

from transfer.activations.forward import Forward, build_forward
from transfer.activations.inventory import Inventory, Stream
from transfer.activations.kept import Kept
from transfer.activations.prefix import Prefix, View, prefix_of
from transfer.activations.request import Extraction, Request
from transfer.activations.rows import Piece, RowBatch, image_rows, kept_rows, seen_as
from transfer.backbone.backbone import Backbone
from transfer.config import Config
from transfer.dataset.manifest import Shard
from transfer.progress import progress
from transfer.storage import Store

logger = logging.getLogger(__name__)

Engine = Literal["auto", "tensorflow", "openvino"]
Item = TypeVar("Item")
Outputs = tuple[Piece, list[np.ndarray]]


def prefixes_of(config: Config, backbone: Backbone, requests: Iterable[Request]) -> dict[str, list[Prefix]]:
    """The prefixes that are asked for, by the split whose images they see.

    `backbone` ends in pooled features. Nothing is kept where a request freezes nothing. Raises BackboneError for a bad
    depth.
    """
    found: dict[str, list[Prefix]] = {}
    plain = functools.cache(functools.partial(prefix_of, backbone, map_dtype=config.activations.map_dtype))
    for request in requests:
        prefix = plain(request.unfreeze)
        if prefix is not None:
            view = None
            if request.view is not None:
                view = View(config.augmentation, seed=config.training.seed, index=request.view)
            found.setdefault(request.split, []).append(prefix.seen_as(view))
    return found


class Extractor:
    """Extracts in several calls: what is kept is listed once for each prefix, and a forward pass is built once."""

    def __init__(self, store: Store, *, engine: Engine = "auto") -> None:
        self._store = store
        self._engine = engine
        self._inventory = Inventory(store)
        self._forwards: dict[tuple[int, ...], Forward] = {}

    def plan(self, shards: Sequence[Shard], prefixes: Sequence[Prefix]) -> list[Stream]:
        """What would be computed; nothing when everything is kept."""
        return self._inventory.plan(_unique(shards), _unique_prefixes(prefixes))

    def forward(self, prefixes: Sequence[Prefix], *, start: Prefix | None = None, rows: int) -> Forward:
        """The forward pass that a pass of extraction uses, built when it is first asked for."""
        # Views of a prefix share its tensors, and so its forward pass.
        key = tuple(id(prefix.network.outputs[0]) if prefix else 0 for prefix in (start, *prefixes))
        if key not in self._forwards:
            self._forwards[key] = build_forward(prefixes, start=start, engine=self._engine, rows=rows)
        return self._forwards[key]

    def extract(
        self,
        shards: Sequence[Shard],
        prefixes: Sequence[Prefix],
        *,
        advance: Callable[[int], None] = lambda _: None,
        rows: int | None = None,
    ) -> Extraction:
        """Compute and keep the outputs of each prefix for each shard, where they are not kept yet.

        A shard is committed as soon as its last image is through, so a killed job goes on with the next one. `advance`
        is called with the number of images whenever some are done. `rows`: images that will come in this call and
        later ones, which decides how much measuring is worth while (default: those of this call).

        Raises StorageError, CorruptObjectError for a damaged image shard, ActivationsError for outputs that cannot be
        kept.
        """
        done = Extraction()
        # A second round follows only where a kept output that a stream starts from turns out damaged.
        while streams := self.plan(shards, prefixes):
            rows = rows or sum(stream.rows for stream in streams)
            done += Extraction.sum([self._run(stream, advance, rows) for stream in streams])
        asked = len(_unique(shards)) * len(_unique_prefixes(prefixes))
        return done + Extraction(shards_found=asked - done.shards_computed)

    def extract_all(self, wanted: Sequence[tuple[Sequence[Shard], Sequence[Prefix]]]) -> Extraction:
        """`extract` for several groups of shards, each with its prefixes; shows one progress over all of them."""
        images = sum(stream.rows for shards, prefixes in wanted for stream in self.plan(shards, prefixes))
        if not images:
            return Extraction()
        with progress("frozen part", total=images) as advance:
            done = [self.extract(*each, advance=advance, rows=images) for each in wanted]
        return Extraction.sum(done)

    def _run(self, stream: Stream, advance: Callable[[int], None], rows: int) -> Extraction:
        started = time.perf_counter()
        forward = self.forward(stream.prefixes, start=stream.start, rows=rows)
        built = time.perf_counter()
        waiting: deque[tuple[Piece, ...]] = deque()
        reading, computing = _Watch(), _Watch()

        def values() -> Iterator[np.ndarray]:
            for batch in reading.over(self._rows(stream, forward.batch_size)):
                waiting.append(batch.pieces)
                yield batch.values

        def by_shard() -> Iterator[Outputs]:
            for outputs in computing.over(forward.map(values())):
                done = 0
                for piece in waiting.popleft():
                    stop = done + len(piece.labels)
                    yield piece, [output[done:stop] for output in outputs]
                    done = stop

        outputs = by_shard()
        shards = [self._keep(stream, first, outputs, advance) for first in outputs]
        ended = time.perf_counter()
        # What computing waits for is read in the meantime.
        return Extraction(
            images=sum(shard.rows for shard in shards),
            shards_computed=len(shards) * len(stream.prefixes),
            shards_resumed=len(shards) * len(stream.prefixes) if stream.start else 0,
            build_s=built - started,
            input_s=reading.seconds,
            forward_s=max(computing.seconds - reading.seconds, 0.0),
            write_s=ended - built - computing.seconds,
        )

    def _keep(self, stream: Stream, first: Outputs, rest: Iterator[Outputs], advance: Callable[[int], None]) -> Shard:
        """Keep the outputs for the shard whose first rows are `first`; its other rows come next in `rest`."""
        shard = first[0].shard
        with ExitStack() as stack:
            writers = [stack.enter_context(Kept(self._store, prefix).writer(shard)) for prefix in stream.prefixes]
            for piece, outputs in _to_end_of_shard(first, rest):
                for writer, output in zip(writers, outputs, strict=True):
                    writer.append(output, piece.labels)
                advance(len(piece.labels))
        for prefix in stream.prefixes:
            self._inventory.add(prefix, shard)
        return shard

    def _rows(self, stream: Stream, batch_size: int) -> Iterator[RowBatch]:
        start = stream.start
        if start is not None:
            return kept_rows(
                Kept(self._store, start),
                stream.shards,
                batch_size=batch_size,
                on_damaged=lambda shard: self._inventory.remove(start, shard),
            )
        prefix = stream.prefixes[0]
        images = image_rows(self._store, stream.shards, image_size=prefix.image_size, batch_size=batch_size)
        return seen_as(prefix.view, images, image_size=prefix.image_size) if prefix.view else images


def _to_end_of_shard(first: Outputs, rest: Iterator[Outputs]) -> Iterator[Outputs]:
    yield first
    stop = first[0].stop
    while stop < first[0].shard.rows:
        outputs = next(rest)
        yield outputs
        stop = outputs[0].stop


class _Watch:
    """Adds up the seconds that it takes to get items out of an iterator."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        iterator = iter(items)
        while True:
            started = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield item


def _unique(shards: Sequence[Shard]) -> list[Shard]:
    return list({shard.sha256: shard for shard in shards}.values())


def _unique_prefixes(prefixes: Sequence[Prefix]) -> list[Prefix]:
    return list({prefix.digest: prefix for prefix in prefixes}.values())
