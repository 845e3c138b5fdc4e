"""One Ray cluster for all tests of this folder."""

import pytest

from tests.clusters import running_cluster


@pytest.fixture(scope="package")
def ray_cluster(s3_server):
    """It ends with the folder: whatever this process tests next has none."""
    with running_cluster():
        yield
