"""The steps of jobs: what belongs to a step besides the room that does it."""

import numpy as np

from tests.sourcing import config_of, write_classes
from transfer.dataset import shard_plan
from transfer.dataset.shards import read_columns
from transfer.ensure import ensure_dataset
from transfer.features.copy import DescribedPart
from transfer.features.store import FeatureStore
from transfer.storage import open_store

PART = DescribedPart("f" * 64, {"shape": [4], "dtype": "float32", "view": None})


def features_of(store, shard):
    """What stands for an image's features: the first bytes of its digest."""
    digests = read_columns(store, shard.whole, ["sha256"])["sha256"].to_pylist()
    return np.array([list(bytes.fromhex(digest)[:4]) for digest in digests], np.float32)


def cache_missing(store, dataset):
    """Cache the features that are not there; returns of how many images."""
    cached, images = FeatureStore(store, PART), 0
    for shard in dataset.shards:
        if not cached.has(shard):
            with cached.writer(shard) as writer:
                writer.append(features_of(store, shard), np.zeros(shard.stored_rows, np.int32))
            images += shard.stored_rows
    return images


def test_only_features_of_new_images_are_missing_whatever_ingest_does_with_the_shards(
    tmp_path, folder_storage, monkeypatch
):
    monkeypatch.setattr(shard_plan, "MAX_SMALL", 2)
    source = write_classes(tmp_path / "images", cat=10, dog=10)
    config = config_of(source, folder_storage, validation=0.0)
    store = open_store(folder_storage)
    assert cache_missing(store, ensure_dataset(config, store)) == 20
    for night, count in enumerate((2, 3), start=1):
        write_classes(source, first_seed=1000 * night, cat=count)
        (source / "dog" / f"{10 + night:05d}.png").unlink()
        dataset = ensure_dataset(config, store)
        assert cache_missing(store, dataset) == count
    # The first two shards were put together, without the image that was removed from one of them before.
    assert [(shard.rows, shard.stored_rows) for shard in dataset.shards] == [(20, 20), (3, 3)]
    rows = FeatureStore(store, PART).open(dataset.shards[0])
    np.testing.assert_array_equal(np.concatenate(list(rows.parts())), features_of(store, dataset.shards[0]))
