"""Digits whose features are extracted, and what extraction kept of them."""

import numpy as np
import pytest

from tests.digits import copied_storage, ingest_digits_in_shards
from transfer.config import AugmentationConfig, ImageInput
from transfer.features.extract import Extractor, image_rows
from transfer.features.store import FeatureStore

TOLERANCE = 1e-4
AUGMENTATION = AugmentationConfig(flip="horizontal", rotation_degrees=20, zoom=0.2, contrast=0.3)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    return ingest_digits_in_shards(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def digits(ingested, tmp_path):
    return copied_storage(*ingested, tmp_path / "storage")


def cache(store, shards, frozen_parts):
    """Extract as a new job does. Which engine runs is not the subject here, and TensorFlow is ready sooner."""
    return Extractor(store, engine="tensorflow").extract(shards, frozen_parts)


def cached_values(store, frozen_part, shards):
    cached = FeatureStore(store, frozen_part)
    return np.concatenate([np.concatenate(list(cached.open(shard).parts())) for shard in shards])


def images_of(store, shards, rows_at_a_time=50):
    batches = image_rows(store, shards, image_input=ImageInput(32, 32), batch_size=rows_at_a_time)
    return np.concatenate([batch.values for batch in batches])


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale, rtol=0)


def rows_of(shards):
    return sum(shard.rows for shard in shards)
