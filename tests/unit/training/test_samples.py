"""Batches of cached features: the same rows in the same places as batches of images."""

import itertools

import keras
import numpy as np
import pytest

from tests.digits import digits_config, write_some_digits
from transfer.backbone.files import RANGES
from transfer.config import ImageInput
from transfer.dataset.batches import image_batches
from transfer.dataset.ingest import ingest
from transfer.dataset.order import WorkerSlice, steps_per_epoch
from transfer.features.frozen import FrozenPart
from transfer.features.store import FeatureStore
from transfer.storage import open_store
from transfer.training import samples as module
from transfer.training.samples import CachedBatches, CachedSplit

SIZE = 32
INPUT = ImageInput(SIZE, SIZE)
BATCH = 14


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A store, its training shards, and what is cached of them: a small pooled picture of each image."""
    folder = tmp_path_factory.mktemp("cached")
    source = {"source": str(write_some_digits(folder / "images")), "validation": 0.2, "test": 0.2}
    config = digits_config(folder, str(folder / "storage"), dataset={**source, "shard_size_bytes": 20_000})
    store = open_store(config.storage)
    shards = ingest(config, store).shards_of("train")
    assert len(shards) > 2
    image = keras.Input((SIZE, SIZE, 3))
    network = keras.Model(image, keras.layers.AveragePooling2D(8)(image))
    frozen_part = FrozenPart(base="pooling", image_input=INPUT, preprocess=RANGES["0..1"], network=network)
    for shard in shards:
        with FeatureStore(store, frozen_part).writer(shard) as writer:
            for batch in image_batches(store, [shard], image_input=INPUT, batch_size=7):
                real = batch["real"].numpy() > 0
                writer.append(frozen_part(batch["images"]).numpy()[real], batch["labels"].numpy()[real])
    # Of two of them, some images were removed since.
    return store, [shards[0].without(np.array([0, 7])), shards[1].without(np.arange(3, 6)), *shards[2:]], frozen_part


def split_of(cached):
    store, shards, frozen_part = cached
    return CachedSplit(shards, [FeatureStore(store, frozen_part).open(shard) for shard in shards])


def steps_of(batches, count):
    """Steps of chunks, one by one: features, labels, real, positions, real images."""
    while count:
        chunk = batches.next_chunk(count)
        for step in range(chunk.steps):
            parts = chunk.features, chunk.labels, chunk.real
            yield *(part[step] for part in parts), chunk.positions, chunk.real_images[step]
        count -= chunk.steps


@pytest.mark.parametrize(
    ("worker", "seed", "start_step"), [(WorkerSlice(), 0, 0), (WorkerSlice(0, 2), 3, 2), (WorkerSlice(1, 2), None, 0)]
)
def test_they_hold_what_the_batches_of_images_hold_however_many_steps_come_at_once(cached, worker, seed, start_step):
    store, shards, frozen_part = cached
    order = {"worker": worker, "seed": seed, "start_step": start_step}
    expected = list(image_batches(store, shards, image_input=INPUT, batch_size=BATCH, epochs=range(2), **order))
    rows = sum(shard.rows for shard in shards)
    assert rows % BATCH
    for max_steps in (1, 4, 100):
        epochs = ((epoch, split_of(cached)) for epoch in range(2))
        batches = CachedBatches(epochs, batch_size=BATCH, max_steps=max_steps, **order)
        assert_same(list(steps_of(batches, len(expected))), expected, frozen_part, rows=rows, start_step=start_step)


def assert_same(found, expected, frozen_part, *, rows, start_step):
    for index, (features, labels, real, positions, real_images) in enumerate(found):
        batch = expected[index]
        is_real = batch["real"].numpy() > 0
        np.testing.assert_array_equal(real, batch["real"])
        np.testing.assert_array_equal(positions, batch["positions"])
        np.testing.assert_array_equal(labels[is_real], batch["labels"].numpy()[is_real])
        np.testing.assert_allclose(features[is_real], frozen_part(batch["images"]).numpy()[is_real], rtol=1e-6)
        step = (index + start_step) % steps_per_epoch(rows, BATCH)
        assert real_images == min(BATCH, rows - step * BATCH)


def test_every_epoch_visits_every_row_once_in_another_order(cached):
    split = split_of(cached)
    steps = steps_per_epoch(len(split), BATCH)
    batches = CachedBatches(((epoch, split) for epoch in range(3)), batch_size=BATCH, seed=0, max_steps=100)
    orders = []
    for _ in range(3):
        rows = [features[real > 0] for features, _, real, _, _ in steps_of(batches, steps)]
        orders.append(np.concatenate(rows).reshape(len(split), -1).sum(axis=1))
    for left, right in itertools.combinations(orders, 2):
        assert (left != right).any()
        np.testing.assert_array_equal(np.sort(left), np.sort(right))


def test_all_chunks_have_the_same_capacity_so_that_one_program_fits_them(cached):
    split = split_of(cached)
    steps = steps_per_epoch(len(split), BATCH)
    batches = CachedBatches(((epoch, split) for epoch in range(2)), batch_size=BATCH, seed=0, max_steps=4)
    chunks = [batches.next_chunk(limit) for limit in (steps, 1, 2, steps, steps)]
    assert {chunk.features.shape[0] for chunk in chunks} == {4}
    assert [chunk.steps for chunk in chunks[:3]] == [4, 1, 2]


def test_a_row_can_be_taken_wherever_it_is_cached(cached):
    split = split_of(cached)
    everything = np.empty((len(split), *split.shape), split.dtype)
    split.take(np.arange(len(split)), everything)
    chosen = np.random.default_rng(0).integers(0, len(split), 300)
    taken = np.empty((300, *split.shape), split.dtype)
    split.take(chosen, taken)
    np.testing.assert_array_equal(taken, everything[chosen])


def test_several_streams_share_the_room_of_one(cached, monkeypatch):
    split = split_of(cached)
    monkeypatch.setattr(module, "CHUNK_SIZE_BYTES", 6 * BATCH * split.row_bytes)
    batches = CachedBatches([(0, split)], batch_size=BATCH, max_steps=100, streams=3)
    assert len(batches.next_chunk(100).features) == 2
