"""Cached features of copied images: the bytes that extraction would have computed, and nothing in between."""

import numpy as np
import pytest

from tests.digits import copied_storage
from tests.extracting import AUGMENTATION, cache, cached_values
from transfer.backbone.backbone import pooled
from transfer.backbone.load import load_backbone
from transfer.dataset.shard_plan import CopiedShard
from transfer.dataset.shards import read_shard, write_shard
from transfer.features.copy import copy_features
from transfer.features.frozen import View, frozen_parts_of
from transfer.features.layout import Request
from transfer.features.store import FeatureStore


@pytest.fixture(scope="module")
def frozen_parts(ingested):
    backbone = pooled(load_backbone(ingested[0].base), "average")
    return frozen_parts_of(ingested[0], backbone, [Request("train", depth) for depth in (0, 2)])["train"]


@pytest.fixture
def copied(digits):
    """A shard with the images of two others but the first of each, under other labels."""
    store, dataset = digits
    sources = tuple(shard.without(np.array([0])) for shard in dataset.shards_of("train")[:2])
    rows = [row for shard in sources for row in read_shard(store, shard).to_pylist()]
    origins = np.array([(index, row) for index, shard in enumerate(sources) for row in shard.live_rows().tolist()])
    order = sorted(range(len(rows)), key=lambda place: rows[place]["sha256"])
    rows = [rows[place] | {"label": rows[place]["label"] + 1} for place in order]
    shard = write_shard(store, rows, split="train")
    return CopiedShard(shard, sources, origins[order], np.array([row["label"] for row in rows], np.int32))


def entries(store, shard):
    return {item.name for item in store.list("features/") if shard.sha256 in item.name}


def test_features_that_are_copied_are_those_that_would_be_computed(digits, ingested, copied, frozen_parts, tmp_path):
    store, dataset = digits
    cache(store, dataset.shards_of("train"), frozen_parts)
    assert copy_features(store, [copied]) == 2
    computed, _ = copied_storage(*ingested, tmp_path / "computed")
    write_shard(computed, read_shard(store, copied.shard).to_pylist(), split="train")
    cache(computed, [copied.shard], frozen_parts)
    for frozen_part in frozen_parts:
        found, expected = (cached_values(each, frozen_part, [copied.shard]) for each in (store, computed))
        np.testing.assert_array_equal(found, expected)
        assert FeatureStore(store, frozen_part).open(copied.shard).labels.tolist() == copied.labels.tolist()
    assert entries(store, copied.shard) == entries(computed, copied.shard)
    assert copy_features(store, [copied]) == 0


def test_features_are_copied_only_where_all_sources_have_intact_ones(digits, copied, frozen_parts):
    store, _ = digits
    first, second = copied.sources
    maps, vectors = frozen_parts
    cache(store, [first, second], [maps])
    cache(store, [first], [vectors])
    cached = FeatureStore(store, maps)
    content = store.folder / cached._content(first, cached._entry(first))
    content.write_bytes(b"damaged")
    assert copy_features(store, [copied]) == 0
    assert entries(store, copied.shard) == set()


def test_features_of_views_are_not_copied(digits, copied, frozen_parts):
    store, _ = digits
    viewed = frozen_parts[0].seen_as(View(AUGMENTATION, seed=0, index=0))
    cache(store, list(copied.sources), [viewed])
    assert copy_features(store, [copied]) == 0
