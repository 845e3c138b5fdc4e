"""Forgetting an image, killed at each of its writes: storage is whole, and repeating it ends where it would have."""

import itertools
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.sourcing import config_of, image, write_classes
from transfer.dataset.ingest import ingest
from transfer.dataset.manifest import latest_dataset
from transfer.dataset.shards import read_shard
from transfer.features.copy import DescribedPart
from transfer.features.store import FeatureStore
from transfer.maintenance.forget import forget
from transfer.storage import open_store, sha256_hex

KEY, DIGEST = "cat/00003.png", sha256_hex(image(3))
PART = DescribedPart("f" * 64, {"shape": [4], "dtype": "float32", "view": None})

CHILD = f"""
import os, signal, sys
from transfer.config import StorageConfig
from transfer.maintenance.forget import forget
from transfer.storage import open_store

store, left = open_store(StorageConfig(uri=sys.argv[1])), int(sys.argv[2])
real = store.put

def put(*args):
    global left
    done = real(*args)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

store.put = put
forget(store, "pets", ["{KEY}"], reason="asked to", remove=True)
"""


def features_of(store, shard):
    """What stands for an image's features: the first bytes of its digest."""
    digests = read_shard(store, shard)["sha256"].to_pylist()
    return np.array([list(bytes.fromhex(digest)[:4]) for digest in digests], np.float32)


def assert_whole(store):
    dataset = latest_dataset(store, "pets")
    cached = FeatureStore(store, PART)
    for shard in dataset.shards:
        features = features_of(store, shard)
        assert len(features) == shard.rows
        if cached.has(shard):
            np.testing.assert_array_equal(np.concatenate(list(cached.open(shard).parts())), features)
    return dataset


@pytest.fixture
def pets(tmp_path, folder_storage):
    """The store of two shards with cached features."""
    source = write_classes(tmp_path / "images", cat=20, dog=20)
    store = open_store(folder_storage)
    for shard in ingest(config_of(source, folder_storage, validation=0.0, shard_size_bytes=12_000), store).shards:
        with FeatureStore(store, PART).writer(shard) as writer:
            writer.append(features_of(store, shard), read_shard(store, shard)["label"].to_numpy())
    return store


def test_whenever_it_is_killed_storage_is_whole_and_repeating_it_ends_the_same(pets, folder_storage, tmp_path):
    before = assert_whole(pets)
    assert len(before.shards) > 1
    expected = None
    for writes in itertools.count(1):
        copy = tmp_path / f"copy-{writes}"
        shutil.copytree(folder_storage.uri, copy)
        store = open_store(folder_storage.model_copy(update={"uri": str(copy)}))
        done = subprocess.run([sys.executable, "-c", CHILD, str(copy), str(writes)], check=False)
        after = assert_whole(store)
        assert after == before or after.number == 2
        forget(store, "pets", [KEY], reason="asked to", remove=True)
        dataset = assert_whole(store)
        assert dataset.number == 2
        assert all(FeatureStore(store, PART).has(shard) for shard in dataset.shards)
        assert DIGEST not in {
            digest for s in dataset.shards for digest in read_shard(store, s.whole)["sha256"].to_pylist()
        }
        expected = expected or dataset.shards
        assert dataset.shards == expected
        if done.returncode == 0:
            break
    # The decision, the shard, its features with their entry and description, the index, the version.
    assert writes > 6
