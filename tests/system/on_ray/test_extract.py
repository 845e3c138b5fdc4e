"""Errors of an extraction on Ray. What actors keep is in test_train.py; those killed are in tests/proof/on_ray."""

import pytest

from tests.digits import digits_config, ingest_some_digits
from transfer.errors import BackboneError, FeaturesError
from transfer.features.layout import Request
from transfer.features.ray_extract import extract_on_cluster

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return ingest_some_digits(tmp_path_factory.mktemp("digits"))


def extract(digits, *, unfreeze=0, **workers):
    source, dataset = digits
    config = digits_config(source, str(source.parent / "storage"), workers={"count": 2, **workers})
    return extract_on_cluster(config, dataset, [Request("train", unfreeze)])


def test_an_error_in_an_actor_arrives_as_it_was_raised(digits):
    with pytest.raises(BackboneError, match="unfreeze is 'nowhere'"):
        extract(digits, unfreeze="nowhere")


def test_a_cluster_that_is_too_small_is_named_in_time(digits):
    with pytest.raises(FeaturesError, match="1000 CPU"):
        extract(digits, cpus_per_worker=1000, start_timeout_s=1.0)
