"""Extraction on Ray actors that are killed: what one process would keep, and nothing a second time."""

import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from tests.clusters import processes_titled
from tests.digits import digits_config, write_some_digits
from transfer.config import WorkersConfig
from transfer.dataset.ingest import ingest
from transfer.errors import FeaturesError
from transfer.features.layout import Extraction, Request
from transfer.features.ray_extract import extract_on_cluster
from transfer.storage import open_store

REQUESTS = [Request("train", 2), Request("train", 0, view=1), Request("validation", 2)]
TOLERANCE = 1e-4
LONGEST_WAIT_S = 300


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    """A configuration and its dataset, of several shards a split."""
    folder = tmp_path_factory.mktemp("digits")
    source = write_some_digits(folder / "images")
    dataset = {"source": str(source), "validation": 0.2, "test": 0.2, "shard_size_bytes": 16_000}
    augmentation = {"flip": "horizontal", "zoom": 0.2, "views": 2}
    config = digits_config(source, str(folder / "storage"), dataset=dataset, augmentation=augmentation)
    return config, ingest(config, open_store(config.storage))


def configured(ingested, **changes):
    """Two workers unless `changes` to `workers` say otherwise, and the dataset."""
    config, dataset = ingested
    return config.model_copy(update={"workers": WorkersConfig(**{"count": 2, **changes})}), dataset


def in_bucket(ingested, storage):
    """The same with everything in a bucket."""
    config, dataset = configured(ingested)
    store, bucket = open_store(config.storage), open_store(storage)
    for shard in dataset.shards:
        bucket.put(shard.name, store.read(shard.name))
    return config.model_copy(update={"storage": storage}), dataset


def asked(dataset):
    """How many outputs of a shard the requests ask for."""
    return sum(len(dataset.shards_of(request.split)) for request in REQUESTS)


def actor_processes(method=""):
    """Process ids of the actors, or of those at work on a method."""
    return processes_titled(f"ray::ExtractionWork{method}")


def kill_one_in_the_middle(store, killed):
    """Kill an actor as soon as something is cached while two are at work."""
    until = time.monotonic() + LONGEST_WAIT_S
    while not killed and time.monotonic() < until:
        cached = sum(item.name.endswith(".arrow") for item in store.list("features/"))
        at_work = actor_processes(".do")
        if cached and at_work:
            with suppress(ProcessLookupError):
                os.kill(at_work[-1], signal.SIGKILL)
                killed.append(at_work[-1])
        time.sleep(0.05)


def values_by_prefix(config, dataset):
    """All that is cached of what was requested, in this process's own words."""
    from transfer.backbone.backbone import pooled
    from transfer.backbone.load import load_backbone
    from transfer.features.frozen import frozen_parts_of
    from transfer.features.store import FeatureStore

    store = open_store(config.storage)
    backbone = pooled(load_backbone(config.base), config.head.pooling)
    found = {}
    for split, frozen_parts in frozen_parts_of(config, backbone, REQUESTS).items():
        for frozen_part in frozen_parts:
            rows = [FeatureStore(store, frozen_part).open(shard) for shard in dataset.shards_of(split)]
            found[split, frozen_part.digest] = np.concatenate([part for cached in rows for part in cached.parts()])
    return found


def extract_here(config, dataset):
    from transfer.backbone.backbone import pooled
    from transfer.backbone.load import load_backbone
    from transfer.features.extract import Extractor
    from transfer.features.frozen import frozen_parts_of

    extractor = Extractor(open_store(config.storage), engine="tensorflow")
    backbone = pooled(load_backbone(config.base), config.head.pooling)
    for split, frozen_parts in frozen_parts_of(config, backbone, REQUESTS).items():
        extractor.extract(dataset.shards_of(split), frozen_parts)


def test_actors_keep_what_one_process_caches_also_when_one_is_killed(ray_cluster, ingested, s3_storage):
    config, dataset = in_bucket(ingested, s3_storage)
    assert len(dataset.shards_of("train")) > 4
    killed = []
    watcher = threading.Thread(target=kill_one_in_the_middle, args=(open_store(s3_storage), killed), daemon=True)
    watcher.start()
    done = extract_on_cluster(config, dataset, REQUESTS)
    watcher.join()
    assert killed
    assert done.shards_computed + done.shards_found == asked(dataset)
    assert done.shards_computed > 0

    assert extract_on_cluster(config, dataset, REQUESTS) == Extraction(shards_found=asked(dataset))
    deadline = time.monotonic() + LONGEST_WAIT_S
    while actor_processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not actor_processes()

    config_here, _ = ingested
    extract_here(config_here, dataset)
    here, there = values_by_prefix(config_here, dataset), values_by_prefix(config, dataset)
    assert here.keys() == there.keys()
    assert len(here) == len(REQUESTS)
    for key, expected in here.items():
        assert len(expected) > 0
        np.testing.assert_allclose(there[key], expected, atol=TOLERANCE * np.abs(expected).max(), rtol=0)


def test_actors_that_keep_dying_are_an_error_that_says_so(ray_cluster, ingested):
    config, dataset = configured(ingested, count=1, max_failures=1)
    done = threading.Event()

    def kill_all():
        while not done.is_set():
            for pid in actor_processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    killer = threading.Thread(target=kill_all, daemon=True)
    killer.start()
    try:
        with pytest.raises(FeaturesError, match="died 2 times"):
            extract_on_cluster(config, dataset, REQUESTS)
    finally:
        done.set()
        killer.join()
