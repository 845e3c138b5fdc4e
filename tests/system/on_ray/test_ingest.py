"""Ingest on a Ray cluster. Workers that die are in tests/proof/on_ray."""

import pytest

from tests.sourcing import config_of, image
from transfer.dataset.ingest import ingest
from transfer.errors import DatasetError
from transfer.runtime.parallel import parallel_map
from transfer.storage import open_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


def fail(item):
    raise DatasetError(f"Item {item} went wrong.", advice="Mend it.")


def test_an_error_in_a_worker_arrives_as_it_was_raised():
    with pytest.raises(DatasetError, match="Item 0 went wrong") as caught:
        list(parallel_map(fail, range(100), processes=1))
    assert type(caught.value) is DatasetError


def test_images_and_shards_in_a_bucket_are_read_and_written_by_the_workers(s3_storage):
    store = open_store(s3_storage)
    for number in range(30):
        store.put(f"photos/{'cat' if number % 2 else 'dog'}/{number}.png", image(number))
    dataset = ingest(config_of(f"{s3_storage.uri}/photos", s3_storage), store)
    assert sum(shard.rows for shard in dataset.shards) == 30
