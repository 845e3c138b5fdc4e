"""Some images of a split that stand for all of it, and their features: one vector for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from transfer.dataset.index import ImageIndex, read_images
from transfer.dataset.listing import as_words, bytes_of_column
from transfer.dataset.manifest import Dataset, Shard
from transfer.errors import FeaturesError
from transfer.evaluation.units import INDEXED, UnitImages, units_of
from transfer.features.store import Described, FeatureStore
from transfer.probes.sample import stratified_rows
from transfer.storage import Store

if TYPE_CHECKING:
    from transfer.config import ImageInput
    from transfer.features.forward import Forward
    from transfer.training.samples import CachedSplit

SAMPLE_ROWS = 5_000
"""Most images of a sample."""
_BLOCK_ROWS = 256


@dataclass(frozen=True, eq=False)
class Sample:
    """Some images of a split, each class by its share. `rows`, `labels`: int64 [n], rows of the split."""

    split: str
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, most: int) -> Sample:
        """The sample of at most so many images."""
        return replace(self, rows=self.rows[:most], labels=self.labels[:most])


def sample_of(store: Store, dataset: Dataset, split: str) -> Sample:
    """At most SAMPLE_ROWS images of a split, which has some. Raises what reading shards raises."""
    tables = read_images(store, dataset, ["label", "sha256"], dataset.shards_of(split))
    labels = np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64)
    digests = np.concatenate([as_words(bytes_of_column(table["sha256"]), 32)[:, 0] for table in tables])
    rows = stratified_rows(labels, digests, SAMPLE_ROWS)
    return Sample(split, rows, labels[rows])


def computed_features(
    store: Store, dataset: Dataset, sample: Sample, forward: Forward, image_input: ImageInput
) -> list[np.ndarray]:
    """What a forward pass gives for a sample, not cached: for each frozen part float32 [n, d].

    Raises FeaturesError if some are not finite, and what a forward pass raises.
    """
    # Imported late, because the driver of an evaluation has no TensorFlow.
    from transfer.dataset.batches import decoded_batches

    ascending = np.argsort(sample.rows)
    encoded = _images(store, dataset, sample.split, sample.rows[ascending])
    images = decoded_batches(encoded, image_input=image_input, batch_size=forward.batch_size)
    of_batches = [[_pooled(features) for features in outputs] for outputs in forward.map(images)]
    places = np.argsort(ascending)
    return [_finite(np.concatenate(of_part)[places]) for of_part in zip(*of_batches, strict=True)]


def cached_features(store: Store, dataset: Dataset, sample: Sample, frozen_part: Described) -> np.ndarray | None:
    """The features of a sample from the cache, float32 [n, d]; None if some are missing or damaged.

    Raises FeaturesError if some are not finite.
    """
    from transfer.training.samples import CachedSplit

    shards = dataset.shards_of(sample.split)
    ends = np.cumsum([shard.rows for shard in shards])
    held, held_place = np.unique(np.searchsorted(ends, sample.rows, side="right"), return_inverse=True)
    needed: list[Shard] = [shards[place] for place in held.tolist()]
    features = FeatureStore(store, frozen_part)
    if not {shard.sha256 for shard in needed} <= features.shards():
        return None
    opened = [cached for cached in features.open_all(needed) if cached is not None]
    if len(opened) < len(needed):
        return None
    # Rows count over the shards that are needed from here on.
    sizes = np.array([shard.rows for shard in needed])
    places = sample.rows + (np.cumsum(sizes) - ends[held])[held_place]
    return _finite(np.concatenate(list(_blocks(CachedSplit(needed, opened), places))))


def _blocks(split: CachedSplit, places: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(places), _BLOCK_ROWS):
        some = places[start : start + _BLOCK_ROWS]
        values = np.empty((len(some), *split.shape), split.dtype)
        split.take(some, values)
        yield _pooled(values)


def _images(store: Store, dataset: Dataset, split: str, rows: np.ndarray) -> Iterator[bytes]:
    """Encoded images of some rows of a split, which ascend."""
    index = ImageIndex(store, dataset, INDEXED)
    for unit in units_of(dataset.shards_of(split)):
        own: Sequence[int] = rows[(rows >= unit.start) & (rows < unit.start + unit.rows)].tolist()
        if own:
            images = UnitImages(store, index, unit, whole=False)
            yield from (images[row - unit.start] for row in own)


def _pooled(features: np.ndarray) -> np.ndarray:
    """Features of any shape as a vector for each image: averaged over all positions. float32 [n, channels]."""
    values = np.asarray(features, np.float32)
    return values.mean(axis=tuple(range(1, values.ndim - 1))) if values.ndim > 2 else values


def _finite(features: np.ndarray) -> np.ndarray:
    wrong = int(np.sum(~np.isfinite(features).all(axis=1)))
    if wrong:
        raise FeaturesError(
            f"The features of {wrong:,} of {len(features):,} images are not all finite numbers.",
            advice="The weights of the network may be broken, or its preprocessing is not the one it was trained with.",
        )
    return features
