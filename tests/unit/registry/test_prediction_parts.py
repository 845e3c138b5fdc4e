"""How the predictions of a job are divided into parts."""

import pytest

from transfer.config import StorageConfig
from transfer.dataset.manifest import Shard
from transfer.registry.images import Image
from transfer.registry.prediction_parts import MOST_BYTES, Listing

IMAGE = Image("a.png", "/a.png", 1, StorageConfig(uri="/storage"))


def shard(digit, rows):
    return Shard(name=f"shards/{digit * 64}.parquet", sha256=digit * 64, split="test", rows=rows, size_bytes=1)


@pytest.mark.parametrize("class_count", [10, 20_000])
def test_the_probabilities_of_a_part_are_bounded_whatever_the_number_of_classes(class_count):
    shards = [shard("1", 2000), shard("2", 1)]
    of_images = Listing("images", class_count, images=[IMAGE] * 100_000)
    of_shards = Listing("pets@1", class_count, shards=shards, with_features=frozenset({"1" * 64}))
    for listing in (of_images, of_shards):
        parts = list(listing.parts())
        assert [part.number for part in parts] == list(range(listing.part_count))
        assert sum(part.rows for part in parts) == listing.rows
        assert max(part.rows for part in parts) * class_count * 4 <= MOST_BYTES
    divided = [(part.shard, row, part.has_features) for part in parts for row in part.shard_rows]
    assert divided == [(each, row, each is shards[0]) for each in shards for row in range(each.rows)]
    assert len(parts) == (2 if class_count == 10 else 4)
