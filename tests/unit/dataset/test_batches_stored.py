"""Decoded images in stored order, without a tf.data pipeline."""

import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import images
from tests.digits import digits_config, write_some_digits
from transfer.config import ImageInput
from transfer.dataset.batches import image_batches, stored_images
from transfer.dataset.decode import load_image, load_plain_jpeg
from transfer.dataset.ingest import ingest
from transfer.errors import CorruptObjectError, ObjectNotFoundError
from transfer.storage import open_store

SIZE = 32
INPUT = ImageInput(SIZE, SIZE)
BATCH = 16


@pytest.fixture
def stored(tmp_path):
    """Several small shards, of JPEGs (one of them turned) and PNGs."""
    source = write_some_digits(tmp_path / "images")
    for index, orientation in enumerate((None, 1, 6)):
        exif = b"Exif\0\0" + images.tiff_block(orientation) if orientation else b""
        image = images.encode(images.picture(seed=index), "JPEG", exif=exif)
        (source / "3" / f"photo-{index}.jpg").write_bytes(image)
    dataset = {"source": str(source), "validation": 0, "test": 0, "shard_size_bytes": 30_000}
    config = digits_config(source, str(tmp_path / "storage"), dataset=dataset)
    store = open_store(config.storage)
    shards = ingest(config, store).shards_of("train")
    assert len(shards) > 2
    assert any(shard.rows % BATCH for shard in shards)
    return store, shards


def test_they_are_what_training_sees_in_stored_order(stored):
    store, shards = stored
    found = list(stored_images(store, shards, image_input=INPUT, batch_size=BATCH))
    assert all(len(pixels) == BATCH for pixels, _ in found[:-1])
    pipeline = list(image_batches(store, shards, image_input=INPUT, batch_size=BATCH, seed=None))
    real = np.concatenate([batch["real"] for batch in pipeline]) > 0
    for index, name in enumerate(("images", "labels")):
        expected = np.concatenate([batch[name] for batch in pipeline])[real]
        np.testing.assert_array_equal(np.concatenate([batch[index] for batch in found]), expected)


def test_a_reader_that_stops_early_leaves_no_thread(stored):
    store, shards = stored
    reading = stored_images(store, shards, image_input=INPUT, batch_size=BATCH)
    before = {*threading.enumerate()}
    next(reading)
    assert {*threading.enumerate()} - before
    reading.close()
    assert not {*threading.enumerate()} - before


def test_a_shard_that_is_damaged_or_gone_is_named(stored):
    store, shards = stored
    path = Path(store.uri) / shards[-1].name
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    with pytest.raises(CorruptObjectError, match=shards[-1].name):
        list(stored_images(store, shards, image_input=INPUT, batch_size=BATCH))
    path.unlink()
    with pytest.raises(ObjectNotFoundError, match=shards[-1].name):
        list(stored_images(store, shards, image_input=INPUT, batch_size=BATCH))


def test_a_plain_jpeg_decodes_the_short_way_to_the_very_same_pixels():
    image = tf.constant(images.encode(images.picture(), "JPEG"))
    np.testing.assert_array_equal(load_plain_jpeg(image, INPUT), load_image(image, INPUT))
